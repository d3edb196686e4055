"""What a decision of the planner takes, worked out anew and remembered, over the number of requests.

    python benchmarks/decision_time.py [--layers 32]

Where all requests' lengths are known, two decisions find out which courses there are to compare ("begins"), others
follow them for a while each ("follows"), and then the best is kept to ("keeps"). Without lengths rates are compared,
here in a load of which some iterations have prompts ("rates"). The targets are 1 ms at 256 requests and 5 ms at 4,096.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from apex_jax.scheduler import Capacity, CostModel, DeviceSpec, HostSpec, ModelShape, Roster, Situation, describe
from apex_jax.scheduler.cost_model.component_times import Costs
from apex_jax.scheduler.planner.planner import Planner

CAPACITY = Capacity(device_kv_tokens=16, page_size=16, max_num_seqs=256, max_host_seqs=8192, max_prefill_tokens=2048)
"""Memory is what a situation says."""


def model(layers: int) -> CostModel:
    """Return the cost model of a T4-like device with Llama-2-7B's layers."""
    shape = ModelShape(
        name="llama-2-7b",
        num_layers=layers,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        intermediate_size=11008,
        vocab_size=32000,
    )
    device = DeviceSpec(
        name="T4",
        memory_gb=16,
        weights_gb_per_s=232,
        attention_gb_per_s=232,
        tflops=19,
        link_gb_per_s=12,
        link_us=30,
    )
    host = HostSpec(name="8 cores", cores=8, memory_gb=64, attention_gb_per_s=44, job_us=20)
    return CostModel(describe(device=device, host=host, model=shape))


def situation(requests: int, layers: int, prompt: int) -> Situation:
    """Return a sixteenth of the requests on the device, half of them on the host, the rest waiting."""
    device, host = max(1, requests // 16), requests // 2
    waiting = requests - device - host
    return Situation(
        num_layers=layers,
        device_rows=device,
        device_kv_tokens=600 * device,
        host_rows=host,
        host_kv_tokens=600 * host,
        prefill_tokens=prompt,
        waiting=waiting,
        waiting_tokens=500 * waiting,
        waiting_first=500,
        waiting_output=300 * waiting,
        remaining_tokens=300 * (device + host),
        free_device_tokens=2000,
        free_host_tokens=100_000,
    )


def roster(here: Situation) -> Roster:
    """Return lengths for the requests of a situation, no two alike."""
    numbers = random.Random(7)

    def some(count: int, context: int) -> list[tuple[int, int]]:
        return [(numbers.randint(context // 2, 2 * context), numbers.randint(1, 600)) for _ in range(count)]

    return Roster(some(here.device_rows, 600), some(here.host_rows, 600), some(here.waiting, 500))


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds that something takes."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def by_rates(requests: int, layers: int, turns: int) -> list[float]:
    """Return what decisions take in a load of which some iterations have prompts, worked out anew."""
    found, costs = [], model(layers)
    here = situation(requests, layers, 0)
    for _ in range(turns):
        planner = Planner(costs, CAPACITY)
        planner.decide(situation(requests, layers, 512))
        planner.decide(here)
        costs.costs = Costs(costs.profile)
        found.append(timed(partial(planner.choose, here)))
    return found


def by_courses(requests: int, layers: int, turns: int) -> tuple[list[float], list[float], list[float]]:
    """Return what decisions take that begin to compare courses, that follow one, and that keep to the present one."""
    begins, follows, keeps, costs = [], [], [], model(layers)
    plain = situation(requests, layers, 512)
    lengths = roster(plain)
    # The requests are gathered when they are asked for, as a scheduler does.
    here = replace(plain, roster=lambda: Roster(*(list(map(tuple, side)) for side in lengths)))
    for turn in range(turns):
        costs.costs = Costs(costs.profile)
        planner = Planner(costs, CAPACITY)
        begins += [timed(partial(planner.decide, here)) for _ in range(2)]
        follows += [timed(partial(planner.decide, here)) for _ in range(4)]
        if not turn:
            planner.settle(here)
            keeps += [timed(partial(planner.decide, here)) for _ in range(turns)]
    return begins, follows, keeps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    layers = parser.parse_args().layers
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {layers} layers")
    print(f"{'requests':>8} {'':>8} {'median':>8} {'90 %':>8} {'worst':>8}   milliseconds")
    for requests in (16, 256, 1024, 4096):
        begins, follows, keeps = by_courses(requests, layers, 100)
        rates = by_rates(requests, layers, 100)
        for name, found in {"begins": begins, "follows": follows, "keeps": keeps, "rates": rates}.items():
            tenth = statistics.quantiles(found, n=10)[-1]
            print(f"{requests:8} {name:>8} {statistics.median(found):8.3f} {tenth:8.3f} {max(found):8.3f}")


if __name__ == "__main__":
    main()
