"""Times measured at a few counts, and what is read off between them."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MOST = 1e18
"""Largest count and longest time of a curve: what is worked out of them stays finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Seconds over a count: straight lines between measured points, never falling.

    Below the first point it stays at the first point's time, beyond the last one it rises as it did from half of the
    last count on, so that noise between two close points is not continued; `covers` tells whether a count lies between
    them, so that nobody reads an extrapolation unawares.

    Attributes:
        points: (count, seconds), counts rising, seconds not falling, at least one.
    """

    points: tuple[tuple[float, float], ...]
    _counts: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _lines: tuple[tuple[float, float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a curve has no points, at least one is needed")
        for count, seconds in self.points:
            for name, value in (("count", count), ("time", seconds)):
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"a curve's {name} is {value!r}; a number is needed")
                if not 0 <= value <= MOST:
                    raise ValueError(f"a curve's {name} is {value:g}; numbers from 0 to {MOST:g} are allowed")
        for (before, low), (count, seconds) in zip(self.points, self.points[1:], strict=False):
            if count <= before:
                raise ValueError(f"a curve's counts must rise, but {count:g} follows {before:g}")
            if seconds < low:
                raise ValueError(
                    f"a curve's times must not fall, but {seconds:g} s at {count:g} follow {low:g} s at {before:g}"
                )
        object.__setattr__(self, "_counts", tuple(count for count, _ in self.points))
        object.__setattr__(self, "_lines", self._make_lines())

    def _make_lines(self) -> tuple[tuple[float, float, float], ...]:
        """(count, seconds, seconds a count) of the line to the left of each point, and of that beyond the last."""
        first, last = self.points[0], self.points[-1]
        lines = [(*first, 0.0)]
        for (left, low), (right, high) in itertools.pairwise(self.points):
            lines.append((left, low, (high - low) / (right - left)))
        left, low = next((point for point in reversed(self.points) if point[0] <= last[0] / 2), first)
        rise = (last[1] - low) / (last[0] - left) if left < last[0] else 0.0
        return (*lines, (*last, rise))

    @classmethod
    def constant(cls, seconds: float) -> Curve:
        """Return the curve that is the same for every count, and covers all of them."""
        return cls(points=((0.0, seconds), (UNBOUNDED, seconds)))

    @classmethod
    def line(cls, seconds_each: float, *, start: float = 0.0) -> Curve:
        """Return `start + seconds_each * count`, which covers every count."""
        return cls(points=((0.0, start), (UNBOUNDED, start + UNBOUNDED * seconds_each)))

    @classmethod
    def fit(cls, samples: Iterable[Sequence[float]]) -> Curve:
        """Return the curve through (count, seconds) samples that noise may have put out of order.

        Samples of one count are averaged. Neighbours that fall are replaced by their mean (pool adjacent violators),
        which is the closest rising sequence in the sense of least squares.
        """
        grouped: dict[float, list[float]] = {}
        for count, seconds in samples:
            grouped.setdefault(count, []).append(seconds)
        blocks: list[tuple[float, list[float]]] = []
        for count in sorted(grouped):
            mean, counts = sum(grouped[count]) / len(grouped[count]), [count]
            while blocks and blocks[-1][0] > mean:
                below, members = blocks.pop()
                mean = (below * len(members) + mean * len(counts)) / (len(members) + len(counts))
                counts = members + counts
            blocks.append((mean, counts))
        return cls(points=tuple((count, mean) for mean, counts in blocks for count in counts))

    def __call__(self, count: float) -> float:
        """Return the seconds at a count."""
        left, low, slope = self._lines[bisect_left(self._counts, count)]
        return low + slope * (count - left)

    def covers(self, count: float) -> bool:
        """Whether the count lies within what was measured."""
        return self._counts[0] <= count <= self._counts[-1]

    def outside(self, count: float, of: str) -> str:
        """Return in words that so many `of` something lie outside of what was measured."""
        return f"{count:,.0f} {of} (measured: {self._counts[0]:,.0f} to {self._counts[-1]:,.0f})"


UNBOUNDED = 2.0**40
"""Last count of described curves: more rows or tokens than any memory holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTime:
    """Seconds of one call of decode attention: a part for its rows and one for the cached tokens they read together.

    Attributes:
        rows: over the rows of the call.
        tokens: over the tokens of all rows' contexts together.
    """

    rows: Curve
    tokens: Curve

    def __call__(self, rows: float, tokens: float) -> float:
        """Return the seconds; nothing takes no time."""
        return self.rows(rows) + self.tokens(tokens) if rows > 0 else 0.0

    def covers(self, rows: float, tokens: float) -> bool:
        """Whether both counts lie within what was measured."""
        return rows <= 0 or (self.rows.covers(rows) and self.tokens.covers(tokens))
