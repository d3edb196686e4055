"""Iterations that the simulator takes in a second of this machine's time.

    python benchmarks/simulator_speed.py

Iterations between two events are taken in one step, so the rate depends on how often requests come and go, and on how
often strategy auto has to decide anew.
"""

from __future__ import annotations

import time
from dataclasses import replace

from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.experiment import Experiment
from apex_jax.scheduler.simulation.workload import PUBLISHED, Job, arriving, equal

STRATEGIES = ("device_only", "asymmetric_pipelining", "async_overlap", "auto")


def main() -> None:
    known = Catalogue.built_in()
    engine = Experiment(
        device=known.device("a10g"), host=known.host("g5.4xlarge"), model=known.model("llama-3.1-8b"), strategy="auto"
    )
    hours = arriving(PUBLISHED["azure-conversation"].draw(3000, seed=1), rate=0.5, seed=1)
    cases: dict[str, list[Job]] = {
        "500 x (500 + 1,000), at once": equal(prompt=500, output=1000, requests=500),
        "conversation, 0.5 a second": [job for job in hours if job.total <= engine.longest],
    }
    print(f"{'workload':<30} {'strategy':<22} {'virtual':>9} {'real':>7} {'iterations':>11} {'a second':>9}")
    for name, jobs in cases.items():
        for strategy in STRATEGIES:
            start = time.perf_counter()
            result = replace(engine, strategy=strategy).run(jobs)
            real = time.perf_counter() - start
            rate = result.iterations / real
            times = f"{result.seconds:7,.0f} s {real:5.1f} s"
            print(f"{name:<30} {strategy:<22} {times} {result.iterations:>11,} {rate:9,.0f}", flush=True)


if __name__ == "__main__":
    main()
