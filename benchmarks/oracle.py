"""Strategy auto against every fixed strategy on simulated workloads.

    python benchmarks/oracle.py [--workloads 48] [--seed 0] [--json]

Workloads are drawn over devices and hosts, lengths, 1 to 512 requests, and 1 to 200 GB of host memory. A fixed strategy
is run twice: with all requests on the host that fit there, and with as many as the cost model thinks worth it. Aimed
at: auto reaches 97 % of the best of them in every workload, and is never slower than device_only by more than 1 %.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.experiment import Experiment
from apex_jax.scheduler.policy import FixedPolicy
from apex_jax.scheduler.simulation.workload import Job, Moments
from apex_jax.scheduler.strategies import STRATEGIES

MACHINES = (
    ("t4", "g4dn.4xlarge", "llama-2-7b"),
    ("t4", "2x-xeon-gold-6130", "llama-2-7b"),
    ("a10", "2x-xeon-gold-6342", "llama-3.1-8b"),
    ("a10g", "g5.4xlarge", "llama-3.1-8b"),
    ("a10g", "g5.16xlarge", "llama-3.1-8b"),
    ("l4", "g6.4xlarge", "llama-3.1-8b"),
    ("rtx-4090", "desktop-ddr5", "llama-3.1-8b"),
    ("rtx-4090", "desktop-ddr5", "llama-3.2-3b"),
    ("h100", "2x-xeon-8480", "llama-3.1-8b"),
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """An engine without a strategy, and what it serves."""

    engine: Experiment
    jobs: tuple[Job, ...]
    lengths: str


def workloads(count: int, seed: int) -> Iterator[Workload]:
    """Yield that many random workloads, every machine as often as the others."""
    known, numbers = Catalogue.built_in(), random.Random(seed)
    for index in range(count):
        device, host, model = MACHINES[index % len(MACHINES)]
        engine = Experiment(
            device=known.device(device),
            host=known.host(host),
            model=known.model(model),
            host_kv_gb=math.exp(numbers.uniform(0, math.log(200))),
        )
        full = engine.capacity.device_kv_tokens
        engine = replace(engine, device_kv_tokens=int(full * numbers.choice((1.0, 0.3, 0.1))))
        prompt, output = numbers.choice((60, 200, 500, 1000)), numbers.choice((25, 80, 250, 800))
        longest = engine.longest - 1
        spread = numbers.choice((0.0, 0.5))
        drawn = Moments(prompt=(prompt, spread * prompt), output=(output, spread * output), source="")
        requests = round(math.exp(numbers.uniform(0, math.log(512))))
        jobs = tuple(_cut(job, longest) for job in drawn.draw(requests, seed=index))
        yield Workload(engine=engine, jobs=jobs, lengths=f"{prompt}+{output}{'~' if spread else ' '}")


def rates(workload: Workload) -> dict[str, float]:
    """Return output tokens a second of auto and of every fixed strategy."""
    engine, jobs = workload.engine, workload.jobs
    found = {name: replace(engine, strategy=name).run(jobs).tokens_per_s for name in ("auto", *STRATEGIES)}
    for name in STRATEGIES[1:]:
        all_of_them = FixedPolicy(
            strategy=name, num_cohorts=engine.cost_model.profile.num_layers + 1, max_host_requests=10**6
        )
        found[f"{name}, all"] = engine.run(jobs, policy=all_of_them).tokens_per_s
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=int, default=48, help="how many (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="of the workloads (default: 0)")
    parser.add_argument("--json", action="store_true", help="print a JSON list of rows")
    args = parser.parse_args()
    rows = []
    for workload in workloads(args.workloads, args.seed):
        found = rates(workload)
        auto = found.pop("auto")
        best = max(found, key=lambda name: found[name])
        engine = workload.engine
        rows.append(
            {
                "device": engine.device.name,
                "host": engine.host.name,
                "lengths": workload.lengths,
                "requests": len(workload.jobs),
                "device_kv_tokens": engine.capacity.device_kv_tokens,
                "host_kv_gb": round(engine.host_kv_gb or 0, 1),
                "auto_tokens_per_s": auto,
                "best": best,
                "auto_over_best": auto / found[best],
                "auto_over_device_only": auto / found["device_only"],
            }
        )
        if not args.json:
            print(_line(rows[-1]), flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    best, alone = (sorted(row[name] for row in rows) for name in ("auto_over_best", "auto_over_device_only"))
    print(f"auto over the best fixed strategy: least {best[0]:.3f}, median {best[len(best) // 2]:.3f}")
    print(f"auto over device_only: least {alone[0]:.3f}, median {alone[len(alone) // 2]:.3f}, most {alone[-1]:.2f}")
    late, slow = sum(value < 0.97 for value in best), sum(value < 0.99 for value in alone)
    print(f"below 0.97 of the best: {late} of {len(best)}; below 0.99 of device_only: {slow} of {len(alone)}")


def _line(row: dict) -> str:
    where = f"{row['device']:<9} {row['host']:<18} {row['lengths']:>9} x{row['requests']:<4}"
    memory = f"{row['device_kv_tokens']:>7} tokens {row['host_kv_gb']:>6} GB"
    mark = "" if row["auto_over_best"] >= 0.97 and row["auto_over_device_only"] >= 0.99 else "  <--"
    ratio = f"{row['auto_over_best']:6.3f} of {row['best']:<28} {row['auto_over_device_only']:6.3f} of device_only"
    return f"{where} {memory} {row['auto_tokens_per_s']:9.1f} tokens/s {ratio}{mark}"


def _cut(job: Job, longest: int) -> Job:
    output = min(job.output, longest // 2)
    return replace(job, prompt=min(job.prompt, longest - output), output=output)


if __name__ == "__main__":
    main()
