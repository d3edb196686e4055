"""Seconds that closed forms add up: plain ones where thousands are needed, or by what they are spent on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .prediction import Terms


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
