"""How long finite batches of requests take beside an emulated device, with strategy auto and on the device alone.

Unlike in the steady state, prompts take their time here, and so does the end, when the last requests are alone. Beside
each stands what the simulator says of the same requests, memory and policy, with the host as it was measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engine.engine import Engine
from ..engine.stats import EngineStats
from ..execution.emulated_device import device_load
from ..sampling_params import SamplingParams
from ..scheduler import CostModel, FixedPolicy, Follower, Policy
from ..scheduler.planner.planner import Planner
from ..scheduler.simulation.simulator import simulate
from ..scheduler.simulation.workload import equal
from ..scheduler.strategies import DEVICE_ONLY
from .calibration import Calibration
from .overlap import OverlapBenchmark, measure_host
from .report import machine, print_setting, setting
from .steady_load import SteadyLoad, TimedStream

POLICIES = (DEVICE_ONLY.name, "auto")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch that has been served.

    Attributes:
        requests: how many.
        policy: "auto" or DEVICE_ONLY.name.
        seconds: from the first request to the last token.
        simulated_s: the same in the simulator.
        stats: of its engine.
    """

    requests: int
    policy: str
    seconds: float
    simulated_s: float
    stats: EngineStats


def run_batches(
    benchmark: OverlapBenchmark,
    steady_load: SteadyLoad,
    sizes: Sequence[int],
    *,
    output: int,
    progress: Callable[[], object],
) -> Iterator[Batch]:
    """Serve batches of each size in turn, on the device alone and with strategy auto, as often as there are rounds.

    The host is measured before and after each size. What it was before is what auto's cost model begins with, the mean
    is what the simulator goes by.

    Args:
        benchmark: the machine, and the mean context of the requests.
        steady_load: its device and worker are used; it has no requests afterwards.
        sizes: requests of each batch.
        output: tokens that each request makes.
        progress: called after each batch, and after each measurement of the host.
    """
    prompt = max(1, benchmark.context - output // 2)
    before = measure_host(benchmark, steady_load)
    progress()
    for size in sizes:
        steady_load.clear()
        steady_load.device.load_of = device_load
        served = []
        for _ in range(benchmark.rounds):
            for name in POLICIES:
                model = before.model(benchmark.profile, context=benchmark.context)
                follower = None if name == DEVICE_ONLY.name else Follower(model)
                engine = Engine(steady_load.engine.executor, _policy(benchmark, model, name), follower)
                served.append((name, _serve(engine, (1,) * prompt, output, size), engine.stats()))
                progress()
        after = measure_host(benchmark, steady_load)
        progress()
        mean = before.plus(after)
        simulated = {name: _simulated(benchmark, mean, name, prompt, output, size) for name in POLICIES}
        for name, seconds, stats in served:
            yield Batch(requests=size, policy=name, seconds=seconds, simulated_s=simulated[name], stats=stats)
        before = after
    steady_load.clear()


def _policy(benchmark: OverlapBenchmark, model: CostModel, name: str) -> Policy:
    if name == DEVICE_ONLY.name:
        return FixedPolicy(strategy=DEVICE_ONLY.name)
    return Planner(model, benchmark.capacity)


def _simulated(
    benchmark: OverlapBenchmark, calibration: Calibration, name: str, prompt: int, output: int, size: int
) -> float:
    """Return the seconds that the simulator says a batch takes."""
    model = calibration.model(benchmark.profile, context=benchmark.context)
    capacity = replace(benchmark.capacity, host_kv_tokens=0) if name == DEVICE_ONLY.name else benchmark.capacity
    jobs = equal(prompt=prompt, output=output, requests=size)
    return simulate(jobs, capacity, model, _policy(benchmark, model, name)).seconds


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
        alone = [batch.seconds for batch in batches if batch.requests == size and batch.policy == DEVICE_ONLY.name]
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
                "simulated_seconds": same[0].simulated_s,
                "simulated_over_emulated": same[0].simulated_s / statistics.median(seconds),
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
    write(
        f"{'emulated':<14}{'requests':>9}{'seconds':>9}{'':>18}{'over device_only':>18}{'tokens by host':>16}"
        f"{'simulated':>11}{'over emulated':>15}"
    )
    for row in table:
        least, most = row["seconds_spread"]
        share = row["host_tokens"] / row["output_tokens"]
        write(
            f"{row['strategy']:<14}{row['requests']:9d}{row['seconds']:9.2f}{f'[{least:.2f}, {most:.2f}]':>18}"
            f"{row['over_device_only']:18.3f}{share:16.0%}"
            f"{row['simulated_seconds']:11.2f}{row['simulated_over_emulated']:15.3f}"
        )
