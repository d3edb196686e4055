"""The device's side of an iteration that repeats: what a strategy's closed form adds its cohorts to, in plain seconds
where thousands are needed, or by what they are spent on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .component_times import CohortCost, Costs
from .prediction import Load, Terms


class Split(Terms):
    """Seconds by what they are spent on, which can be added up and multiplied."""

    __slots__ = ()

    def __add__(self, other: Split) -> Split:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Thousands of these are added up for a decision: nothing more general is as quick.
        a, b, c, d, e, f = self
        g, h, i, j, k, m = other
        return _made(Split, (a + g, b + h, c + i, d + j, e + k, f + m))

    def __mul__(self, factor: float) -> Split:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b, c, d, e, f = self
        return _made(Split, (factor * a, factor * b, factor * c, factor * d, factor * e, factor * f))


_made = tuple.__new__

A = TypeVar("A", float, Split)
"""Seconds of one of the two kinds."""


def total(amounts: Sequence[A]) -> A:
    """Return the sum of some amounts, at least one."""
    added = amounts[0]
    for more in amounts[1:]:
        added = added + more
    return added


@dataclass(frozen=True)
class Amounts(Generic[A]):
    """How amounts of one kind are made and compared.

    Attributes:
        linear, device_attention, prefill_attention, host_attention, transfer, overhead: seconds spent on that.
        longest: the one of most seconds; the first of several as long.
        stretched: an amount made so many seconds long.
    """

    linear: Callable[[float], A]
    device_attention: Callable[[float], A]
    prefill_attention: Callable[[float], A]
    host_attention: Callable[[float], A]
    transfer: Callable[[float], A]
    overhead: Callable[[float], A]
    longest: Callable[[Sequence[A]], A]
    stretched: Callable[[A, float], A]


def _longest(amounts: Sequence[Split]) -> Split:
    return max(amounts, key=sum)


def _stretched(amount: Split, seconds: float) -> Split:
    return amount * (seconds / amount.total)


PLAIN: Amounts[float] = Amounts(float, float, float, float, float, float, max, lambda amount, seconds: seconds)
SPLIT: Amounts[Split] = Amounts(
    lambda seconds: _made(Split, (seconds, 0.0, 0.0, 0.0, 0.0, 0.0)),
    lambda seconds: _made(Split, (0.0, seconds, 0.0, 0.0, 0.0, 0.0)),
    lambda seconds: _made(Split, (0.0, 0.0, seconds, 0.0, 0.0, 0.0)),
    lambda seconds: _made(Split, (0.0, 0.0, 0.0, seconds, 0.0, 0.0)),
    lambda seconds: _made(Split, (0.0, 0.0, 0.0, 0.0, seconds, 0.0)),
    lambda seconds: _made(Split, (0.0, 0.0, 0.0, 0.0, 0.0, seconds)),
    _longest,
    _stretched,
)


class Side(Generic[A]):
    """What the device's own rows and prompts take, and passes in which cohorts ride.

    Args:
        costs: times of the parts.
        load: the device's side; cohorts in it do not count.
        amounts: the kind of seconds that are added up.

    Attributes:
        costs, load, amounts: the same.
        num_layers: L.
        width: rows of a pass.
        attention: of the device's rows and prompts through all layers.
        attention_s: the same as plain seconds.
        overhead: what an iteration with cohorts takes beside its parts.
    """

    def __init__(self, costs: Costs, load: Load, amounts: Amounts[A]) -> None:
        self.costs = costs
        self.load = load
        self.amounts = amounts
        self.num_layers = costs.num_layers
        self.width = costs.device_width(load)
        decode_s, prompts_s = costs.device_attention(load), costs.prefill_attention(load)
        self.attention_s = decode_s + prompts_s
        self.attention: A = amounts.device_attention(decode_s)
        if load.prefill_tokens:
            self.attention = self.attention + amounts.prefill_attention(prompts_s)
        self.overhead: A = amounts.overhead(costs.overhead(cohorts=True))

    @property
    def alone(self) -> A:
        """An iteration without cohorts."""
        overhead = self.amounts.overhead(self.costs.overhead(cohorts=False))
        return self.passes() + self.head(0) + self.attention + overhead

    def passes(self, cohort: CohortCost | None = None) -> A:
        """Return all passes of the device's rows, boundary 0 to L, alone or with a cohort on board of each."""
        if cohort is None:
            return self.amounts.linear(self.num_layers * self.costs.layer(self.width))
        return self._passes(self.width + cohort.width, cohort)

    def apart(self, cohort: CohortCost) -> A:
        """Return all passes of a cohort by itself."""
        return self._passes(cohort.width, cohort)

    def head(self, host_rows: float) -> A:
        """Return the head's time for the device's tokens and so many of host rows."""
        return self.amounts.linear(self.costs.head(self.load.device_tokens + host_rows))

    def jobs(self, cohort: CohortCost, layers: float) -> A:
        """Return a cohort's attention in so many layers."""
        return self.amounts.host_attention(layers * cohort.job)

    def waits(self, cohort: CohortCost) -> A:
        """Return the time from every handover of a cohort to its result, if the host does nothing else."""
        return self.jobs(cohort, self.num_layers) + self.amounts.transfer(self.num_layers * cohort.hop)

    def _passes(self, width: int, cohort: CohortCost) -> A:
        linear = self.amounts.linear(self.num_layers * self.costs.layer(width))
        return linear + self.amounts.transfer((self.num_layers + 1) * cohort.boarding)
