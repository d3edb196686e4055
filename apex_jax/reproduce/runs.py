"""The simulations behind the tables: every strategy and ablation on every workload and set-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from ..scheduler.experiment import Experiment
from ..scheduler.policy import FixedPolicy
from ..scheduler.simulation.metrics import Simulated
from ..scheduler.simulation.workload import Job, equal
from ..scheduler.strategies import ASYMMETRIC_PIPELINING, ASYNC_OVERLAP, DEVICE_ONLY, LAYER_SYNC
from .setups import Setup, Workload, served

STRATEGIES = (DEVICE_ONLY.name, "pipelining", "overlap", "apex")
"""Pipelining and overlap fall back to device_only where that is predicted to be faster; `apex` is strategy auto."""

ABLATIONS = ("apex without overlap", "apex, host kernel at two thirds", "always overlap")
"""What is taken away from `apex`; "always overlap" is without the cost model."""

ABLATED = ("code", "short", "long")
"""Workloads of the ablations."""

SLOWER_KERNEL = 2 / 3
"""Of the host's rate. By how much the authors' own kernel was slower is not known."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One simulation.

    Attributes:
        machine, setup, workload: what was simulated.
        variant: one of `STRATEGIES` or `ABLATIONS`.
        prompt, output: mean tokens of the requests.
        left_out: fraction of the requests that were too long for the device.
        device_kv_tokens, host_gb_per_s: of the set-up.
        result: what came out.
    """

    machine: str
    setup: str
    workload: str
    variant: str
    prompt: float
    output: float
    left_out: float
    device_kv_tokens: int
    host_gb_per_s: float
    result: Simulated

    def row(self) -> dict[str, object]:
        """Return the columns of a table."""
        result = self.result
        return {
            "machine": self.machine,
            "setup": self.setup,
            "workload": self.workload,
            "variant": self.variant,
            "mean_prompt_tokens": round(self.prompt, 1),
            "mean_output_tokens": round(self.output, 1),
            "fraction_left_out": round(self.left_out, 3),
            "device_kv_tokens": self.device_kv_tokens,
            "host_attention_gb_per_s": self.host_gb_per_s,
            "requests_per_s": round(result.requests_per_s, 5),
            "tokens_per_s": round(result.tokens_per_s, 3),
            "tpot_device_ms": _rounded(result.tpot_device_ms),
            "tpot_host_ms": _rounded(result.tpot_host_ms),
            "tpot_device_p99_ms": _rounded(result.tpot_device_p99_ms),
            "tpot_host_p99_ms": _rounded(result.tpot_host_p99_ms),
            "host_token_fraction": round(result.host_tokens / result.output_tokens, 4),
            "device_busy": round(result.device_busy, 4),
            "host_busy": round(result.host_busy, 4),
        }


def variant(engine: Experiment, jobs: Sequence[Job], name: str) -> Simulated:
    """Return what an engine does with the requests as one of `STRATEGIES` or `ABLATIONS`."""
    if name == "apex, host kernel at two thirds":
        slower = replace(engine.host, attention_gb_per_s=engine.host.attention_gb_per_s * SLOWER_KERNEL)
        return replace(engine, host=slower).run(jobs)
    if name == "always overlap":
        cohorts = engine.model.num_layers + 1
        policy = FixedPolicy(strategy=ASYNC_OVERLAP.name, num_cohorts=cohorts, max_host_requests=10**6)
        return engine.run(jobs, policy=policy)
    if name == "apex without overlap":
        return engine.run(jobs, policy=engine.planner((LAYER_SYNC.name, ASYMMETRIC_PIPELINING.name)))
    strategies = {"pipelining": ASYMMETRIC_PIPELINING.name, "overlap": ASYNC_OVERLAP.name, "apex": "auto"}
    return replace(engine, strategy=strategies.get(name, name)).run(jobs)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A simulation to be made.

    Attributes:
        setup, workload, variant: what is simulated.
        jobs: the requests.
        left_out: fraction of the workload's requests that are too long for the device.
    """

    setup: Setup
    workload: str
    variant: str
    jobs: tuple[Job, ...]
    left_out: float = 0.0

    def run(self) -> Run:
        """Return the simulation."""
        engine = self.setup.engine
        return Run(
            machine=self.setup.machine,
            setup=self.setup.label,
            workload=self.workload,
            variant=self.variant,
            prompt=mean(job.prompt for job in self.jobs),
            output=mean(job.output for job in self.jobs),
            left_out=self.left_out,
            device_kv_tokens=engine.capacity.device_kv_tokens,
            host_gb_per_s=engine.host.attention_gb_per_s,
            result=variant(engine, self.jobs, self.variant),
        )


def workload_tasks(
    setups: Sequence[Setup], workloads: Mapping[str, Sequence[Workload]], requests: int
) -> Iterator[Task]:
    """Yield all strategies on all workloads and set-ups, and the ablations on some.

    A workload of which nothing fits on a set-up's device is left out there, see `too_long`.

    Args:
        setups: the machines.
        workloads: by machine.
        requests: of each simulation at most.
    """
    for setup in setups:
        for workload in workloads[setup.machine]:
            jobs = tuple(served(workload, setup.engine, requests))
            if not jobs:
                continue
            fitting = sum(job.total <= setup.engine.longest for job in workload.jobs)
            for name in (*STRATEGIES, *(ABLATIONS if workload.group in ABLATED else ())):
                yield Task(
                    setup=setup,
                    workload=workload.group,
                    variant=name,
                    jobs=jobs,
                    left_out=1 - fitting / len(workload.jobs),
                )


def too_long(setups: Sequence[Setup], workloads: Mapping[str, Sequence[Workload]]) -> Iterator[tuple[Setup, Workload]]:
    """Yield the workloads of which not one request fits on a set-up's device."""
    for setup in setups:
        for workload in workloads[setup.machine]:
            if not served(workload, setup.engine, 1):
                yield setup, workload


SWEPT = (DEVICE_ONLY.name, "pipelining", "apex")

SWEEP = {"T4": (200, (25, 50, 100, 200, 400, 800)), "A10": (1000, (50, 100, 200, 400, 800, 1600))}
"""Prompt and output tokens of the sweep over output lengths."""


def sweep_tasks(setups: Sequence[Setup], requests: int) -> Iterator[Task]:
    """Yield simulations over output lengths: equal requests, what fits on the device, every host bandwidth."""
    for setup in setups:
        if setup.engine.device_kv_tokens is None:
            prompt, outputs = SWEEP[setup.machine]
            for output in outputs:
                jobs = tuple(equal(prompt=prompt, output=output, requests=requests))
                for name in SWEPT:
                    yield Task(setup=setup, workload=f"{prompt}+{output}", variant=name, jobs=jobs)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
