"""Seconds that closed forms add up: plain ones where thousands are needed, or by what they are spent on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add
from typing import Generic, TypeVar

from .prediction import Terms


class Split:
    """Seconds by what they are spent on, which can be added up and multiplied.

    Args:
        terms: the seconds.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def __add__(self, other: Split) -> Split:
        return Split(Terms(*map(add, self.terms, other.terms)))

    def __mul__(self, factor: float) -> Split:
        return Split(Terms(*[factor * seconds for seconds in self.terms]))

    @property
    def seconds(self) -> float:
        """All of them together."""
        return self.terms.total


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
    return max(amounts, key=lambda amount: amount.seconds)


def _stretched(amount: Split, seconds: float) -> Split:
    return amount * (seconds / amount.seconds)


PLAIN: Amounts[float] = Amounts(float, float, float, float, float, float, max, lambda amount, seconds: seconds)
SPLIT: Amounts[Split] = Amounts(
    lambda seconds: Split(Terms(linear=seconds)),
    lambda seconds: Split(Terms(device_attention=seconds)),
    lambda seconds: Split(Terms(prefill_attention=seconds)),
    lambda seconds: Split(Terms(host_attention=seconds)),
    lambda seconds: Split(Terms(transfer=seconds)),
    lambda seconds: Split(Terms(overhead=seconds)),
    _longest,
    _stretched,
)
