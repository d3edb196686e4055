"""One cohort of host requests or several: async_overlap on an emulated device.

    python benchmarks/cohorts.py [--host-requests 384 96] [--cohorts 1 2 3 6 9 17] [--rounds 3] [--seconds 0.7] [--json]

The same host requests ride in so many cohorts, in alternation. The device takes the time that a profile gives it; host
attention, threads, queues and scheduler are real. Cohorts depart evenly spaced over the L + 1 boundaries, so that with
17 of them there can be 1, 2, 3, 6, 9 or 17, and any other number behaves like one of these.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from apex_jax.bench.overlap import OverlapBenchmark
from apex_jax.bench.report import machine
from apex_jax.bench.steady_load import REST, Interval, SteadyLoad
from apex_jax.scheduler import Decision
from apex_jax.scheduler.cohorts import even
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.cost_model.component_times import Costs
from apex_jax.tracing.recorder import Recorder, Span

SETTLING = 4
"""Iterations after every cohort has departed."""


@dataclass(frozen=True, kw_only=True)
class CohortTrial:
    """One measurement.

    Attributes:
        lanes: rows of each cohort.
        interval: what happened.
        waited: share of the time in which the device had nothing to do before a pass with a cohort.
        job_s: the host's jobs in order.
    """

    lanes: tuple[int, ...]
    interval: Interval
    waited: float
    job_s: list[float]


def measure(benchmark: OverlapBenchmark, steady_load: SteadyLoad, host_requests: int, cohorts: int) -> CohortTrial:
    """Let the requests that are there ride in so many cohorts."""
    boundaries, lanes = benchmark.profile.num_layers + 1, even(host_requests, cohorts)
    # Cohorts of another size that are still under way would go on beside the new ones.
    steady_load.run(REST, boundaries + 1)
    steady_load.run(Decision(strategy="async_overlap", lanes=lanes), boundaries + SETTLING)
    recorder = Recorder(label="emulated")
    steady_load.engine.record(recorder)
    interval = steady_load.measure(benchmark.seconds, multiple=boundaries)
    steady_load.engine.record(None)
    spans = recorder.trace().spans
    waited_s = waits(span for span in spans if span.track == "device")
    jobs = sorted((span for span in spans if (span.track, span.name) == ("host", "attention")), key=_begin)
    return CohortTrial(
        lanes=lanes,
        interval=interval,
        waited=waited_s / interval.seconds,
        job_s=[(span.end_ns - span.begin_ns) / 1e9 for span in jobs],
    )


def waits(spans: Iterable[Span]) -> float:
    """Return for how many seconds a device had nothing to do before passes with a cohort."""
    parts = sorted((span for span in spans if span.name != "iteration"), key=_begin)
    boarding = ((before, after) for before, after in pairwise(parts) if "cohort" in after.args)
    return sum(after.begin_ns - before.end_ns for before, after in boarding if after.args["layer"] != 0) / 1e9


def _begin(span: Span) -> int:
    return span.begin_ns


def run(
    benchmark: OverlapBenchmark, steady_load: SteadyLoad, host_requests: int, counts: Sequence[int]
) -> dict[int, list[CohortTrial]]:
    """Return the turns of every number of cohorts, measured in alternation."""
    turns = {count: [] for count in counts}
    for number in range(benchmark.rounds):
        # Requests grow by some tokens in every turn; their mean is to be the context that was asked for.
        steady_load.fill(host_requests, context=benchmark.context - 4 * len(counts))
        for count in counts if number % 2 == 0 else reversed(counts):
            turns[count].append(measure(benchmark, steady_load, host_requests, count))
    steady_load.clear()
    return turns


def emulated_row(
    benchmark: OverlapBenchmark, host_requests: int, count: int, turns: Sequence[CohortTrial]
) -> dict[str, Any]:
    """Return medians over turns."""
    intervals = [turn.interval for turn in turns]
    rates = sorted(interval.tokens_per_s for interval in intervals)
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
        "device_busy": statistics.median(interval.device_busy for interval in intervals),
        "host_busy": statistics.median(interval.host_busy for interval in intervals),
        "waited": statistics.median(turn.waited for turn in turns),
        "idle": max(0.0, statistics.median(1 - turn.interval.device_busy - turn.waited for turn in turns)),
        "iteration_ms": 1e3 * statistics.median(interval.iteration_s for interval in intervals),
        "device_token_ms": _median_gap(interval.device_gaps_ns for interval in intervals),
        "host_token_ms": _median_gap(interval.host_gaps_ns for interval in intervals),
        "job_ms": [1e3 * low, 1e3 * median, 1e3 * high],
        "host_context": statistics.median(interval.host_context for interval in intervals),
        "others_busy": max((interval.others_busy or 0.0 for interval in intervals), default=0.0),
    }


def _median_gap(gaps_ns: Iterable[Sequence[int]]) -> float:
    return statistics.median(gap for interval in gaps_ns for gap in interval) / 1e6


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


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
    steady_load, emulated = benchmark.steady_load(), []
    for requests in args.host_requests:
        turns = run(benchmark, steady_load, requests, args.cohorts)
        emulated += [emulated_row(benchmark, requests, count, turns[count]) for count in args.cohorts]
    if args.json:
        print(json.dumps({**machine(), "emulated": emulated}, indent=2))
        return
    about = machine()
    print(f"emulated {args.device} with {args.shape}, KV of {args.device_kv_tokens:,} tokens on the device")
    print(f"real host: {about['host']}, {about['cores']} cores; {about['versions']}")
    print_emulated(emulated)


if __name__ == "__main__":
    main()
