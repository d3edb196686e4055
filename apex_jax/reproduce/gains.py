"""Gains in throughput of one variant over another, worked out from simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..scheduler.strategies import DEVICE_ONLY
from .runs import Run
from .setups import NOMINAL, PAPERS_RATIOS

OVER = {
    DEVICE_ONLY.name: ("apex", DEVICE_ONLY.name),
    "pipelining": ("apex", "pipelining"),
    "overlap": ("overlap", "pipelining"),
    "without_overlap": ("apex", "apex without overlap"),
    "slower_kernel": ("apex", "apex, host kernel at two thirds"),
    "no_cost_model": ("apex", "always overlap"),
}
"""Gains by name: the variant, and what it is compared with."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The gain in tokens/s of one variant over another.

    Attributes:
        machine, setup, workload: of both.
        over: a key of `OVER`.
        percent: 0 where they are equal.
    """

    machine: str
    setup: str
    workload: str
    over: str
    percent: float

    @property
    def is_nominal(self) -> bool:
        return self.setup == NOMINAL

    @property
    def is_at_papers_ratio(self) -> bool:
        return self.setup in PAPERS_RATIOS

    def __str__(self) -> str:
        return f"{self.workload} on {self.machine}, {self.setup}: {self.percent:.1f}"


def gains_of(runs: Sequence[Run]) -> list[Gain]:
    """Return all gains whose two variants were simulated."""
    rates: dict[tuple[str, str, str], dict[str, float]] = {}
    for run in runs:
        rates.setdefault((run.machine, run.setup, run.workload), {})[run.variant] = run.result.tokens_per_s
    return [
        Gain(machine=machine, setup=setup, workload=workload, over=over, percent=100 * (found[this] / found[that] - 1))
        for (machine, setup, workload), found in rates.items()
        for over, (this, that) in OVER.items()
        if this in found and that in found
    ]
