"""What a chart of a trace shows: which iterations, which spans, and how busy each side was."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .recorder import ITERATION, TRACKS, Span, Trace, Track

DEFAULT_ITERATIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One iteration of a trace.

    Attributes:
        number: of its plan.
        strategy: what built the plan, or "" where the trace does not say.
        begin_ns, end_ns: its pass over the layers.
    """

    number: int
    strategy: str
    begin_ns: int
    end_ns: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive iterations and all that happened in them.

    Attributes:
        iterations: at least one.
        spans: those that overlap the window, marks of iterations left out.
        recorded: numbers of the first and the last iteration of the whole trace.
        trace: where they come from.
    """

    iterations: tuple[Iteration, ...]
    spans: tuple[Span, ...]
    recorded: tuple[int, int]
    trace: Trace

    @property
    def begin_ns(self) -> int:
        """Where it begins: with its first iteration."""
        return self.iterations[0].begin_ns

    @property
    def end_ns(self) -> int:
        """Where it ends: with its last iteration."""
        return self.iterations[-1].end_ns

    def busy(self, track: Track) -> float:
        """Return the fraction of the window in which a track has a span, between 0 and 1."""
        spans = [span for span in self.spans if span.track == track]
        return _covered(spans, self.begin_ns, self.end_ns) / (self.end_ns - self.begin_ns)

    def summary(self) -> str:
        """Return one line for a person."""
        first, last = self.iterations[0].number, self.iterations[-1].number
        which = f"iteration {first}" if first == last else f"iterations {first} to {last}"
        strategies = ", ".join(dict.fromkeys(i.strategy for i in self.iterations if i.strategy))
        milliseconds = (self.end_ns - self.begin_ns) / 1e6
        parts = [
            f"{which} of {self.recorded[0]} to {self.recorded[1]}" + (f" ({strategies})" if strategies else ""),
            f"{milliseconds:.1f} ms {self.trace.label}",
            *(f"{track} busy {self.busy(track):.0%}" for track in ("device", "host")),
        ]
        if self.trace.dropped:
            parts.append(f"older events dropped: {self.trace.dropped:,}")
        return " · ".join(parts)


def find_iterations(trace: Trace) -> tuple[Iteration, ...]:
    """Return the iterations in the order of time.

    Marks on the device count where there are any, since Python's lie ahead of the work that they start.

    Raises:
        ValueError: nothing marks an iteration.
    """
    marks = [mark for mark in trace.spans if mark.name == ITERATION and isinstance(mark.args.get(ITERATION), int)]
    if not marks:
        raise ValueError(f"the trace marks no iterations: it has no event {ITERATION!r} with a number")
    track = min((mark.track for mark in marks), key=TRACKS.index)
    marks = sorted((mark for mark in marks if mark.track == track), key=lambda mark: mark.begin_ns)
    return tuple(
        Iteration(
            number=int(mark.args[ITERATION] or 0),
            strategy=str(mark.args.get("strategy") or ""),
            begin_ns=mark.begin_ns,
            # At least a nanosecond: what lasts no time cannot be drawn or divided by.
            end_ns=max(mark.begin_ns + 1, mark.end_ns),
        )
        for mark in marks
    )


def choose(trace: Trace, numbers: tuple[int, int] | None = None) -> Window:
    """Return a few iterations to look at.

    Args:
        trace: a whole run.
        numbers: the first iteration and the one after the last; None for some from the middle in which both device
            and host work, or from the middle of all where there are none.

    Raises:
        ValueError: the trace has no iterations, or not all of `numbers`.
    """
    iterations = find_iterations(trace)
    if numbers is None:
        chosen = _from_the_middle(trace, iterations)
    else:
        chosen = tuple(iteration for iteration in iterations if numbers[0] <= iteration.number < numbers[1])
        if numbers[0] >= numbers[1] or len(chosen) < numbers[1] - numbers[0]:
            dropped = f" (older events dropped: {trace.dropped:,})" if trace.dropped else ""
            raise ValueError(
                f"iterations {numbers[0]}:{numbers[1]} are not in the trace, which has {_ranges(iterations)}{dropped}"
            )
    begin, end = chosen[0].begin_ns, chosen[-1].end_ns
    spans = tuple(s for s in trace.spans if s.begin_ns < end and s.end_ns > begin and s.name != ITERATION)
    return Window(iterations=chosen, spans=spans, recorded=(iterations[0].number, iterations[-1].number), trace=trace)


def _ranges(iterations: Sequence[Iteration]) -> str:
    """First and one after the last of each unbroken sequence of numbers."""
    numbers = [iteration.number for iteration in iterations]
    begins = [number for before, number in itertools.pairwise([numbers[0] - 2, *numbers]) if number != before + 1]
    ends = [before + 1 for before, number in itertools.pairwise([*numbers, numbers[-1] + 2]) if number != before + 1]
    return ", ".join(f"{begin}:{end}" for begin, end in zip(begins, ends, strict=True))


def _from_the_middle(trace: Trace, iterations: Sequence[Iteration]) -> tuple[Iteration, ...]:
    length = min(DEFAULT_ITERATIONS, len(iterations))
    works = [_working(trace.spans, iterations, track) for track in ("device", "host")]
    both = works[0] & works[1]
    numbers = [iteration.number for iteration in iterations]
    starts = range(len(iterations) - length + 1)
    # Recording may have been interrupted; the chart would be little but a gap of seconds.
    starts = [start for start in starts if numbers[start + length - 1] - numbers[start] == length - 1] or starts
    good = [start for start in starts if both.issuperset(range(start, start + length))]
    if not good:
        good = [start for start in starts if not both.isdisjoint(range(start, start + length))]
    start = (good or starts)[len(good or starts) // 2]
    return tuple(iterations[start : start + length])


def _working(spans: Iterable[Span], iterations: Sequence[Iteration], track: Track) -> set[int]:
    """Return the indices of the iterations that some span of a track overlaps."""
    begins = [iteration.begin_ns for iteration in iterations]
    found = set()
    for span in spans:
        if span.track == track and span.name != ITERATION:
            first = max(0, bisect_right(begins, span.begin_ns) - 1)
            touched = range(first, bisect_right(begins, span.end_ns))
            found |= {index for index in touched if iterations[index].end_ns > span.begin_ns}
    return found


def _covered(spans: Iterable[Span], begin_ns: int, end_ns: int) -> int:
    """Return the nanoseconds between two moments in which at least one span lasts."""
    covered, reached = 0, begin_ns
    for span in sorted(spans, key=lambda span: span.begin_ns):
        upto = min(span.end_ns, end_ns)
        if upto > reached:
            covered += upto - max(reached, span.begin_ns)
            reached = upto
    return covered
