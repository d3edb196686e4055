"""Predicted against measured iterations, over situations that the profile was not measured at.

    python benchmarks/prediction.py cpu [--model smollm2-135m]          # the device is the CPU: device_only
    python benchmarks/prediction.py emulated [--device t4] [--model llama-3.2-1b]    # all strategies

Either measures a profile first, then runs plans of other rows, lengths and prompts through the engine's executor, and
predicts each from the profile. `cpu` measures real iterations. `emulated` has a device that takes the times of the
named one, beside a real host, executor and worker: the profile is measured there too, and hybrid plans must come out.
Targets: median error under 5 %, 90th percentile under 15 %.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp

from apex_jax import LLM
from apex_jax.execution.batch import Buckets, padding_of
from apex_jax.execution.emulated_device import EmulatedDevice
from apex_jax.execution.executor import Executor
from apex_jax.host_offload import HostKVConfig, HostWorker, allocate
from apex_jax.machine.processor import processor_and_cores
from apex_jax.profiling.probe_plans import ProfilePlans
from apex_jax.profiling.profiler import Profiler
from apex_jax.progress_bar import Bar
from apex_jax.scheduler import Capacity, CostModel, Load, Plan, Profile, ProfileKey, describe
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.strategies.steady import steady

HYBRID: tuple[str, ...] = ("layer_sync", "asymmetric_pipelining", "async_overlap")
KEY = ProfileKey(device="here", host="here", model="of this run", dtypes="of this run", software="of this run")


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Iterations that are alike.

    Attributes:
        strategy: of the plans.
        text: what is in them, for people.
        make: returns the plan of a turn.
        lanes, length: host rows of each cohort and their contexts.
    """

    strategy: str
    text: str
    make: Callable[[int], Plan]
    lanes: tuple[int, ...] = ()
    length: int = 0

    @property
    def load(self) -> Load:
        """The device's side in counts."""
        plan = replace(self.make(0), cohorts=())
        return Load.of(plan, page_size=1)


def device_situations(plans: ProfilePlans, rng: random.Random, *, count: int, longest: int) -> Iterator[Situation]:
    """Yield decode iterations of many rows and lengths, every third one with a prompt's chunk."""
    page = plans.page_size
    for turn in range(count):
        rows = rng.randint(1, plans.max_num_seqs - 1)
        length = round(math.exp(rng.uniform(math.log(page), math.log(min(longest, plans.capacity.longest // rows)))))
        if turn % 3 == 2:
            tokens, start = page * rng.randint(1, 8), page * rng.randint(0, max(0, longest // page - 8))
            yield Situation(
                strategy="device_only",
                text=f"{rows} rows x {page}, prompt {start}:{start + tokens}",
                make=lambda _, tokens=tokens, start=start, rows=rows: plans.prefill(tokens, start, rows=rows),
            )
        else:
            yield Situation(
                strategy="device_only",
                text=f"{rows} rows x {length}",
                make=lambda _, rows=rows, length=length: plans.decode(rows, length),
            )


def hybrid_situations(
    plans: ProfilePlans, rng: random.Random, *, count: int, longest: int, host_rows: int
) -> Iterator[Situation]:
    """Yield iterations of each hybrid strategy in turn."""
    for turn in range(count):
        strategy, page = HYBRID[turn % len(HYBRID)], plans.page_size
        rows = rng.randint(1, plans.max_num_seqs)
        length = min(rng.randint(page, longest), plans.capacity.longest // rows)
        cohorts = {"layer_sync": 1, "asymmetric_pipelining": 2, "async_overlap": rng.choice((1, 2, 4))}[strategy]
        each = round(math.exp(rng.uniform(0, math.log(host_rows // cohorts))))
        host_length = min(rng.randint(page, longest), page * plans.num_host_pages // (each * cohorts))
        lanes = (each,) * cohorts
        alone = plans.decode(rows, length)

        def make(
            turn: int,
            own: Plan = alone,
            strategy: str = strategy,
            lanes: tuple[int, ...] = lanes,
            host_length: int = host_length,
        ) -> Plan:
            return plans.hybrid(own, strategy, lanes, host_length, turn=turn)

        text = f"{rows} rows x {length}, host {cohorts} x {each} x {host_length}"
        yield Situation(strategy=strategy, text=text, make=make, lanes=lanes, length=host_length)


def measure(executor: Executor, situation: Situation) -> float:
    """Return the mean seconds of an iteration over whole tokens of every cohort, each with the next one queued."""
    turns = executor.device.num_layers + 1 if situation.strategy == "async_overlap" else 8
    ends: list[float] = []
    before = None
    for turn in range(2 * turns + 1):
        plan = situation.make(turn)
        submitted = executor.submit(plan if turn == 0 else replace(plan, new_pages=(), new_host_pages=()))
        if before is not None:
            executor.fetch(before)
            ends.append(time.perf_counter())
        before = submitted
    if before is not None:
        executor.fetch(before)
    executor.rest()
    if situation.strategy == "async_overlap":
        return (ends[-1] - ends[-1 - turns]) / turns
    return statistics.median(later - earlier for earlier, later in pairwise(ends))


def compare(executor: Executor, profile: Profile, situations: list[Situation]) -> None:
    """Print a row a situation, and the errors of each strategy and of all."""
    model, errors = CostModel(profile), {}
    print(f"{'strategy':22} {'measured ms':>12} {'predicted ms':>12} {'error':>7}   situation")
    for situation in situations:
        measured = measure(executor, situation)
        predicted = steady(model.costs, situation.strategy, situation.load, situation.lanes, situation.length)
        error = predicted.iteration_s / measured - 1
        errors.setdefault(situation.strategy, []).append(abs(error))
        mark = "  (beyond the profile)" if predicted.extrapolated else ""
        print(
            f"{situation.strategy:22} {1e3 * measured:12.3f} {1e3 * predicted.iteration_s:12.3f} {error:7.1%}   "
            f"{situation.text}{mark}",
            flush=True,
        )
    for name, found in (*errors.items(), ("all", [error for each in errors.values() for error in each])):
        found.sort()
        tenth = found[math.ceil(0.9 * len(found)) - 1]
        print(f"{name:22} median {statistics.median(found):.1%}, 90th percentile {tenth:.1%} of {len(found)}")


def profiled(executor: Executor) -> Profile:
    """Return the profile of an executor."""
    with Bar(desc="Profiling", unit=" points") as bar:
        profiler = Profiler(executor, KEY, kv_bytes_per_token=1, pre_share=0.2, on_point=bar.update)
        bar.total = profiler.sizes.count
        return profiler.measure()


def plans_of(executor: Executor) -> ProfilePlans:
    """Return what makes plans for an executor."""
    return ProfilePlans(num_layers=executor.device.num_layers, capacity=executor.buckets.capacity)


def cpu_executor(model: str, longest: int, num_layers: int | None) -> Executor:
    """Return the executor of an engine whose device is the CPU."""
    llm = LLM(
        model,
        load_format="dummy",
        num_layers=num_layers,
        device=jax.devices("cpu")[0],
        device_kv_tokens=16 * longest,
        host_kv_bytes=1 << 28,
        max_num_seqs=16,
        max_model_len=longest,
        strategy="device_only",
    )
    return llm.engine.executor


def emulated_executor(device: str, model: str, longest: int) -> Executor:
    """Return an executor on an emulated device, with a real host worker."""
    known = Catalogue.built_in()
    shape = known.model(model)
    page = 64
    capacity = Capacity(
        device_kv_tokens=16 * longest,
        host_kv_tokens=32 * longest,
        page_size=page,
        max_num_seqs=16,
        max_host_seqs=64,
        max_prefill_tokens=512,
    )
    buckets = Buckets(capacity=capacity, table_width=longest // page, ragged_attention=True)
    profile = describe(known.device(device), known.host("g4dn.4xlarge"), shape, page_size=page)
    layout = HostKVConfig(
        num_layers=shape.num_layers, num_kv_heads=shape.num_kv_heads, head_width=shape.head_dim, page_size=page
    )
    host_bytes = capacity.host_kv_tokens * shape.kv_bytes_per_token
    worker = HostWorker(allocate(layout, host_bytes, jax.devices("cpu")[0]), num_heads=shape.num_heads)
    emulated = EmulatedDevice(
        replace(profile, padding=padding_of(buckets)),
        shape,
        dtype=jnp.dtype(jnp.bfloat16),
        buckets=buckets,
    )
    return Executor(emulated, worker)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("level", choices=("cpu", "emulated"))
    parser.add_argument("--model", help="default: smollm2-135m on the CPU, llama-3.2-1b emulated")
    parser.add_argument("--device", default="t4", help="which device is emulated (default: %(default)s)")
    parser.add_argument("--num-layers", type=int, help="of the model on the CPU (default: its own)")
    parser.add_argument("--situations", type=int, default=36)
    parser.add_argument("--longest", type=int, default=1024, help="context in tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    if args.level == "cpu":
        executor = cpu_executor(args.model or "smollm2-135m", args.longest, args.num_layers)
        plans = plans_of(executor)
        situations = list(device_situations(plans, rng, count=args.situations, longest=args.longest))
    else:
        executor = emulated_executor(args.device, args.model or "llama-3.2-1b", args.longest)
        plans = plans_of(executor)
        own, hybrid = args.situations // 4, args.situations - args.situations // 4
        situations = [
            *device_situations(plans, rng, count=own, longest=args.longest),
            *hybrid_situations(plans, rng, count=hybrid, longest=args.longest, host_rows=64),
        ]
    print(f"{processor_and_cores()}, jax {jax.__version__}, Python {platform.python_version()}")
    profile = profiled(executor)
    compare(executor, profile, situations)


if __name__ == "__main__":
    main()
