"""One cohort of host requests or several, and whether to wait for a late one: async_overlap on an emulated device.

    python benchmarks/cohorts.py [--host-requests 384 96] [--cohorts 1 2 3 6 9 17] [--rounds 3] [--seconds 0.7] [--json]

Emulated: the same host requests ride in so many cohorts, in alternation. The device takes the time that a profile gives
it; host attention, threads, queues and scheduler are real. Cohorts depart evenly spaced over the L + 1 boundaries, so
that with 17 of them there can be 1, 2, 3, 6, 9 or 17, and any other number behaves like one of these.

Replayed: the jobs of those runs in virtual time (see cohort_replay.py), as they were, and all longer or shorter by a
factor, so that the host is a little too slow for the device: waiting for a late cohort against letting it sit out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from cohort_replay import Outcome, Policy, Scene, at_load, replay, thinned

from apex_jax.bench.overlap import OverlapBenchmark
from apex_jax.bench.report import machine
from apex_jax.bench.steady_load import REST, Population, Window
from apex_jax.scheduler import Decision
from apex_jax.scheduler.cohorts import even
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.cost_model.component_times import Costs
from apex_jax.tracing.recorder import Recorder, Span

LOADS = (0.9, 1.0, 1.1, 1.3)
"""Host time of an iteration over the device's, beside what was measured."""

SETTLING = 4
"""Iterations after every cohort has departed."""

SIZES = (0.88, 0.94, 1.0)
"""Loads for which the cohorts of a host that is too slow could be sized."""

REPLAYED_ITERATIONS = 2000


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One measurement.

    Attributes:
        lanes: rows of each cohort.
        window: what happened.
        waited: share of the time in which the device had nothing to do before a pass with a cohort.
        boardings: passes with a cohort, an iteration.
        job_s: the host's jobs in order.
    """

    lanes: tuple[int, ...]
    window: Window
    waited: float
    boardings: float
    job_s: list[float]


def measure(benchmark: OverlapBenchmark, population: Population, host_requests: int, cohorts: int) -> Turn:
    """Let the requests that are there ride in so many cohorts."""
    boundaries, lanes = benchmark.profile.num_layers + 1, even(host_requests, cohorts)
    # Cohorts of another size that are still under way would go on beside the new ones.
    population.run(REST, boundaries + 1)
    population.run(Decision(strategy="async_overlap", lanes=lanes), boundaries + SETTLING)
    recorder = Recorder(label="emulated")
    population.engine.executor.record(recorder)
    window = population.measure(benchmark.seconds, multiple=boundaries)
    population.engine.executor.record(None)
    spans = recorder.trace().spans
    waited_s, boardings = waits(span for span in spans if span.track == "device")
    jobs = sorted((span for span in spans if (span.track, span.name) == ("host", "attention")), key=_begin)
    return Turn(
        lanes=lanes,
        window=window,
        waited=waited_s / window.seconds,
        boardings=boardings / window.seen.plans,
        job_s=[(span.end_ns - span.begin_ns) / 1e9 for span in jobs],
    )


def waits(spans: Iterable[Span]) -> tuple[float, int]:
    """Return for how many seconds a device had nothing to do before passes with a cohort, and how many there were."""
    parts = sorted((span for span in spans if span.name != "iteration"), key=_begin)
    gaps = [(after, after.begin_ns - before.end_ns) for before, after in pairwise(parts) if "cohort" in after.args]
    return sum(gap for span, gap in gaps if span.args["layer"] != 0) / 1e9, len(gaps)


def _begin(span: Span) -> int:
    return span.begin_ns


def run(
    benchmark: OverlapBenchmark, population: Population, host_requests: int, counts: Sequence[int]
) -> dict[int, list[Turn]]:
    """Return the turns of every number of cohorts, measured in alternation."""
    turns = {count: [] for count in counts}
    for number in range(benchmark.rounds):
        # Requests grow by some tokens in every turn; their mean is to be the context that was asked for.
        population.fill(host_requests, context=benchmark.context - 4 * len(counts))
        for count in counts if number % 2 == 0 else reversed(counts):
            turns[count].append(measure(benchmark, population, host_requests, count))
    population.clear()
    return turns


def emulated_row(benchmark: OverlapBenchmark, host_requests: int, count: int, turns: Sequence[Turn]) -> dict[str, Any]:
    """Return medians over turns."""
    windows = [turn.window for turn in turns]
    rates = sorted(window.tokens_per_s for window in windows)
    jobs = [seconds for turn in turns for seconds in turn.job_s]
    low, median, high = (_quantile(jobs, share) for share in (0.01, 0.5, 0.99))
    return {
        "kind": "emulated",
        "host_requests": host_requests,
        "cohorts": count,
        "rows": turns[0].lanes[0],
        "padded_rows": Costs(benchmark.profile).host_width(turns[0].lanes[0]),
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_spread": [rates[0], rates[-1]],
        "device_busy": statistics.median(window.device_busy for window in windows),
        "host_busy": statistics.median(window.host_busy for window in windows),
        "waited": statistics.median(turn.waited for turn in turns),
        "idle": max(0.0, statistics.median(1 - turn.window.device_busy - turn.waited for turn in turns)),
        "iteration_ms": 1e3 * statistics.median(window.iteration_s for window in windows),
        "device_token_ms": _median_gap(window.device_gaps_ns for window in windows),
        "host_token_ms": _median_gap(window.host_gaps_ns for window in windows),
        "job_ms": [1e3 * low, 1e3 * median, 1e3 * high],
        "host_context": statistics.median(window.host_context for window in windows),
        "others_busy": max((window.others_busy or 0.0 for window in windows), default=0.0),
    }


def _median_gap(gaps_ns: Iterable[Sequence[int]]) -> float:
    return statistics.median(gap for window in gaps_ns for gap in window) / 1e6


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def scene(benchmark: OverlapBenchmark, host_requests: int, turns: Sequence[Turn]) -> Scene:
    """Return the middle of the turns for replay."""
    costs, boundaries = Costs(benchmark.profile), benchmark.profile.num_layers + 1
    device_rows = statistics.mean(turn.window.device_rows for turn in turns)
    alone = costs.width(round(device_rows), 0)
    rows = costs.host_width(turns[0].lanes[0])
    riding = costs.layer(alone + rows) - costs.layer(alone) + costs.boarding(rows)
    busy = statistics.mean(turn.window.device_busy * turn.window.iteration_s for turn in turns)
    boardings = statistics.mean(turn.boardings for turn in turns)
    return Scene(
        boundaries=boundaries,
        boundary_s=(busy - boardings * riding) / boundaries,
        riding_s=riding,
        transfer_s=costs.hop(rows),
        job_s=[seconds for turn in turns for seconds in turn.job_s],
        cohorts=len(turns[0].lanes),
        cohort_rows=host_requests / len(turns[0].lanes),
        device_rows=device_rows,
    )


def replayed_rows(found: Scene, host_requests: int) -> list[dict[str, Any]]:
    """Return all policies at every load, and what waiting reaches with cohorts of the best size."""
    rows = []
    for load in (found.load, *LOADS):
        loaded = at_load(found, load)
        outcomes = {policy: replay(loaded, policy, iterations=REPLAYED_ITERATIONS) for policy in get_args(Policy)}
        smaller = [thinned(loaded, size) for size in SIZES if size < load]
        sized = [outcomes["wait"], *(replay(each, "wait", iterations=REPLAYED_ITERATIONS) for each in smaller)]
        outcomes["wait_sized"] = max(sized, key=lambda outcome: outcome.tokens_per_s)
        row = {"kind": "replayed", "host_requests": host_requests, "cohorts": found.cohorts}
        row |= {"as_measured": load == found.load, "load": load}
        rows.append(row | {name: _outcome(outcome) for name, outcome in outcomes.items()})
    return rows


def _outcome(outcome: Outcome) -> dict[str, float]:
    return {
        "tokens_per_s": outcome.tokens_per_s,
        "device_token_ms": 1e3 * outcome.device_token_s,
        "host_token_ms": 1e3 * outcome.host_token_s,
        "waited": outcome.waited,
        "missed": outcome.missed,
    }


def print_emulated(rows: Sequence[dict[str, Any]]) -> None:
    """Write a table for people."""
    print()
    print("emulated: host requests in so many cohorts; medians, [least, most]; a host job's ms at 1, 50 and 99 %;")
    print("waited: the device had nothing to do until a cohort came on board; idle: at any other time;")
    print("others: the cores' time that other processes took in the worst turn")
    print(
        f"{'requests':>8}{'cohorts':>8}{'rows':>5}{'padded':>7}{'tokens/s':>9}{'':>14}{'device':>8}{'host busy':>10}"
        f"{'waited':>7}{'idle':>6}{'iteration':>10}{'ms a token: device':>19}{'host':>7}{'job':>22}{'others':>8}"
    )
    for row in rows:
        low, high = row["tokens_per_s_spread"]
        jobs = " / ".join(f"{milliseconds:.2f}" for milliseconds in row["job_ms"])
        print(
            f"{row['host_requests']:8d}{row['cohorts']:8d}{row['rows']:5d}{row['padded_rows']:7d}"
            f"{row['tokens_per_s']:9.0f}{f'[{low:.0f}, {high:.0f}]':>14}{row['device_busy']:8.0%}"
            f"{row['host_busy']:10.0%}{row['waited']:7.1%}{row['idle']:6.1%}{row['iteration_ms']:10.2f}"
            f"{row['device_token_ms']:19.1f}{row['host_token_ms']:7.0f}{jobs:>22}{row['others_busy']:8.1%}"
        )


def print_replayed(rows: Sequence[dict[str, Any]]) -> None:
    """Write a table for people."""
    print()
    print("replayed: the same jobs in virtual time, as they were (*) or scaled to a load of the host; tokens/s of all,")
    print("ms a token of device and host requests; sized: waiting, with cohorts as they are or smaller, the best of a")
    print(f"load of {SIZES}")
    print(
        f"{'requests':>8}{'cohorts':>8}{'load':>6} {'tokens/s: wait':>15}{'sit out':>8}{'at best':>8}{'sized':>7}"
        f"{'waited':>8}{'missed':>8}{'device ms: wait':>16}{'sit out':>8}{'host ms: wait':>14}{'sit out':>8}"
    )
    for row in rows:
        wait, out, best, sized = (row[name] for name in ("wait", "sit_out", "sit_out_at_best", "wait_sized"))
        print(
            f"{row['host_requests']:8d}{row['cohorts']:8d}{row['load']:6.2f}{'*' if row['as_measured'] else ' '}"
            f"{wait['tokens_per_s']:15.0f}{out['tokens_per_s']:8.0f}{best['tokens_per_s']:8.0f}"
            f"{sized['tokens_per_s']:7.0f}{wait['waited']:8.1%}{out['missed']:8.1%}"
            f"{wait['device_token_ms']:16.1f}{out['device_token_ms']:8.1f}"
            f"{wait['host_token_ms']:14.0f}{out['host_token_ms']:8.0f}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="t4")
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--hardware", type=Path, help="JSON file with devices and models of your own")
    parser.add_argument("--device-kv-tokens", type=int, default=4000)
    parser.add_argument("--context", type=int, default=400)
    parser.add_argument("--host-kv-gb", type=float, default=8.0)
    parser.add_argument("--host-requests", type=int, nargs="+", default=[384, 96])
    parser.add_argument("--cohorts", type=int, nargs="+", default=[1, 2, 3, 6, 9, 17])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each turn")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parse()
    catalogue = Catalogue.built_in()
    if args.hardware is not None:
        catalogue = catalogue.extended(args.hardware)
    benchmark = OverlapBenchmark(
        device=catalogue.device(args.device),
        model=catalogue.model(args.shape),
        device_kv_tokens=args.device_kv_tokens,
        context=args.context,
        host_kv_bytes=int(args.host_kv_gb * 1e9),
        strategies=("async_overlap",),
        seconds=args.seconds,
        rounds=args.rounds,
    )
    if not 0 < min(args.host_requests) <= max(args.host_requests) <= benchmark.host_requests:
        raise SystemExit(f"--host-requests is {args.host_requests}; 1 to {benchmark.host_requests} fit")
    population, emulated, replayed = benchmark.population(), [], []
    for requests in args.host_requests:
        turns = run(benchmark, population, requests, args.cohorts)
        emulated += [emulated_row(benchmark, requests, count, turns[count]) for count in args.cohorts]
        for count in args.cohorts:
            replayed += replayed_rows(scene(benchmark, requests, turns[count]), requests)
    if args.json:
        print(json.dumps({**machine(), "emulated": emulated, "replayed": replayed}, indent=2))
        return
    about = machine()
    print(f"emulated {args.device} with {args.shape}, KV of {args.device_kv_tokens:,} tokens on the device")
    print(f"real host: {about['host']}, {about['cores']} cores; {about['versions']}")
    print_emulated(emulated)
    print_replayed(replayed)


if __name__ == "__main__":
    main()
