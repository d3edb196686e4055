"""How long finite batches of requests take beside an emulated device, with strategy auto and on the device alone.

Unlike in the steady state, prompts take their time here, and so does the end, when the last requests are alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .engine import Engine, EngineStats
from .executor import Executor
from .overlap_bench import OverlapBenchmark
from .overlap_calibration import Calibration
from .overlap_population import Population, TimedStream
from .overlap_report import machine, print_setting, setting
from .sampling_params import SamplingParams
from .scheduler import FixedPolicy, Follower, Planner, PlannerOptions, Policy

POLICIES = ("device_only", "auto")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch that has been served.

    Attributes:
        requests: how many.
        policy: "auto" or "device_only".
        seconds: from the first request to the last token.
        stats: of its engine.
    """

    requests: int
    policy: str
    seconds: float
    stats: EngineStats


def run_batches(
    benchmark: OverlapBenchmark,
    population: Population,
    calibration: Calibration,
    sizes: Sequence[int],
    *,
    output: int,
    progress: Callable[[], object],
) -> Iterator[Batch]:
    """Serve batches of each size in turn, on the device alone and with strategy auto, as often as there are rounds.

    Args:
        benchmark: the machine, and the mean context of the requests.
        population: its device and worker are used.
        calibration: what auto's cost model begins with.
        sizes: requests of each batch.
        output: tokens that each request makes.
        progress: called after each batch.
    """
    population.clear()
    device = population.device
    device.skips_prompts = False
    prompt = (1,) * max(1, benchmark.context - output // 2)
    for size in sizes:
        for _ in range(benchmark.rounds):
            for name in POLICIES:
                policy, follower = _policy(benchmark, calibration, name)
                engine = Engine(Executor(device, population.worker), policy, follower)
                seconds = _serve(engine, prompt, output, size)
                yield Batch(requests=size, policy=name, seconds=seconds, stats=engine.stats())
                progress()


def _policy(benchmark: OverlapBenchmark, calibration: Calibration, name: str) -> tuple[Policy, Follower | None]:
    if name == "device_only":
        return FixedPolicy(strategy="device_only"), None
    model, buckets = calibration.model(benchmark.profile, context=benchmark.context), benchmark.buckets
    options = PlannerOptions(
        max_device_requests=buckets.max_num_seqs,
        max_host_requests=buckets.max_host_seqs,
        max_prefill_tokens=buckets.max_prefill_pages * buckets.page_size,
    )
    return Planner(model, options), Follower(model)


def _serve(engine: Engine, prompt: Sequence[int], output: int, size: int) -> float:
    began = time.perf_counter()
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
    for index in range(size):
        engine.add(engine.prepare(prompt, params, TimedStream(output), seed=0, index=index))
    while engine.has_unfinished:
        engine.step()
    return time.perf_counter() - began


def batch_rows(benchmark: OverlapBenchmark, batches: Sequence[Batch], *, output: int) -> list[dict[str, Any]]:
    """Return a row for each size and policy; every request made `output` tokens."""
    found = []
    for size, policy in dict.fromkeys((batch.requests, batch.policy) for batch in batches):
        same = [batch for batch in batches if (batch.requests, batch.policy) == (size, policy)]
        alone = [batch.seconds for batch in batches if batch.requests == size and batch.policy == "device_only"]
        seconds = sorted(batch.seconds for batch in same)
        last = same[-1].stats
        found.append(
            {
                **setting(benchmark),
                "strategy": policy,
                "requests": size,
                "output": output,
                "rounds": len(same),
                "seconds": statistics.median(seconds),
                "seconds_spread": [seconds[0], seconds[-1]],
                "tokens_per_s": last.output_tokens / statistics.median(seconds),
                "over_device_only": statistics.median(seconds) / statistics.median(alone),
                "output_tokens": last.output_tokens,
                "host_tokens": last.host_tokens,
                "evictions": last.evictions,
                "landings": last.landings,
                "preemptions": last.preemptions,
                **machine(),
            }
        )
    return found


def print_batches(table: Sequence[dict[str, Any]], write: Callable[[str], object]) -> None:
    """Write rows for people."""
    print_setting(table[0], write)
    write(f"medians of {table[0]['rounds']} batches of each kind; [least, most] beside them")
    write("")
    write(f"{'emulated':<14}{'requests':>9}{'seconds':>9}{'':>18}{'over device_only':>18}{'tokens by host':>16}")
    for row in table:
        least, most = row["seconds_spread"]
        share = row["host_tokens"] / row["output_tokens"]
        write(
            f"{row['strategy']:<14}{row['requests']:9d}{row['seconds']:9.2f}{f'[{least:.2f}, {most:.2f}]':>18}"
            f"{row['over_device_only']:18.3f}{share:16.0%}"
        )
