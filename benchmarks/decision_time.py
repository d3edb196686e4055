"""What a decision of the planner takes, worked out anew and remembered, over the number of requests.

    python benchmarks/decision_time.py [--layers 32]

The planner sees counts, so its time hardly depends on them; the targets are 1 ms at 256 requests and 5 ms at 4,096.
"""

import argparse
import platform
import statistics
import time

from apex_jax.scheduler import (
    CostModel,
    DeviceRates,
    HostRates,
    ModelShape,
    Planner,
    PlannerOptions,
    Situation,
    describe,
)
from apex_jax.scheduler.costs import Costs


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
    device = DeviceRates(
        name="T4",
        weights_bytes_per_s=232e9,
        attention_bytes_per_s=232e9,
        flops_per_s=19e12,
        link_bytes_per_s=12e9,
        link_s=3e-5,
    )
    host = HostRates(name="8 cores", attention_bytes_per_s=44e9, job_s=2e-5)
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
        remaining_tokens=300 * (device + host),
        free_device_tokens=200,
        free_host_tokens=100_000,
    )


def measure(requests: int, layers: int) -> tuple[list[float], list[float]]:
    """Return milliseconds of decisions worked out anew, in a load of which some iterations have prompts, and of
    remembered ones."""
    anew, remembered, costs = [], [], model(layers)
    options = PlannerOptions(max_device_requests=256, max_host_requests=8192)
    here = situation(requests, layers, 0)
    for _ in range(200):
        planner = Planner(costs, options)
        planner.decide(situation(requests, layers, 512))
        planner.decide(here)
        costs.costs = Costs(costs.profile)
        start = time.perf_counter()
        planner.choose(here)
        anew.append(1e3 * (time.perf_counter() - start))
        planner = Planner(costs, options)
        planner.decide(here)
        start = time.perf_counter()
        planner.decide(here)
        remembered.append(1e3 * (time.perf_counter() - start))
    return anew, remembered


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    layers = parser.parse_args().layers
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {layers} layers")
    print(f"{'requests':>8} {'anew: median':>14} {'90 %':>8} {'worst':>8} {'remembered':>12}   milliseconds")
    for requests in (16, 256, 1024, 4096):
        anew, remembered = measure(requests, layers)
        tenth = statistics.quantiles(anew, n=10)[-1]
        print(
            f"{requests:8} {statistics.median(anew):14.3f} {tenth:8.3f} {max(anew):8.3f} "
            f"{statistics.median(remembered):12.4f}"
        )


if __name__ == "__main__":
    main()
