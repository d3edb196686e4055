"""Records what ran when, for people: pass a `Recorder` down, or None where nobody looks.

Who holds one calls `span` when something has ended:

    begin = time.perf_counter_ns()
    ...
    if recorder is not None:
        recorder.span("host", "attention", begin, time.perf_counter_ns(), layer=3, cohort=7, rows=12)

What the charts of `apex-jax timeline` understand. Names are kinds and get a colour each; args are free beside these:

    track      names                                                    args
    device     "iteration": all of an iteration, around its parts       iteration, strategy, rows
               any part of it, such as "layer", "attention", "head"     layer, rows, cohort if one rides, last_layer if
                                                                        it is several layers
    host       "attention" and what else the worker does                layer, rows, cohort
    transfers  "to host", "to device", "evict", "fetch", "land"         layer, rows, cohort
    waits      "device waits", "host waits", "python waits"             layer, cohort
    python     "plan", "dispatch", "read tokens", "update"              iteration
"""

from __future__ import annotations

import os
import platform
from collections import deque
from itertools import count

from ..machine.versions import installed_versions
from .trace_file import TRACKS, Span, Trace, TraceError, Track, Value, load, save

__all__ = ["ITERATION", "TRACKS", "Recorder", "Span", "Trace", "TraceError", "Track", "Value", "load"]

ITERATION = "iteration"
"""Name of the spans that mark iterations."""

DEFAULT_MAX_EVENTS = 200_000
"""Some 1,500 iterations of 32 layers, in about 80 MB of memory."""

_PACKAGES = ("jax", "jaxlib", "numpy")

_Event = tuple[int, Track, str, int, int, dict[str, Value]]
"""Number, track, name, begin, end, args."""


class Recorder:
    """Collects events from any number of threads, of which it keeps the newest.

    Args:
        label: where the times come from: "measured" on real devices, "emulated" or "simulated" otherwise.
        max_events: most events kept; older ones are dropped and counted.

    Raises:
        ValueError: `max_events` is not positive.
    """

    def __init__(self, *, label: str = "measured", max_events: int = DEFAULT_MAX_EVENTS) -> None:
        if max_events < 1:
            raise ValueError(f"max_events is {max_events}; at least 1 event has to be kept")
        self._label = label
        # A deque's append and copy are atomic, and so is the next number: a lock would make the threads wait for
        # whichever of them lost the interpreter while it held the lock.
        self._events: deque[_Event] = deque(maxlen=max_events)
        self._number = count()

    def span(self, track: Track, name: str, begin_ns: int, end_ns: int, **args: Value) -> None:
        """Record something that has ended.

        Args:
            track: one of `TRACKS`.
            name: its kind.
            begin_ns, end_ns: of `time.perf_counter_ns`.
            **args: what tells it from others of its kind; plain numbers and strings.

        Raises:
            ValueError: there is no such track, or the end is before the beginning.
        """
        if track not in TRACKS or end_ns < begin_ns:
            raise ValueError(_complaint(track, name, begin_ns, end_ns))
        self._events.append((next(self._number), track, name, begin_ns, end_ns, args))

    def trace(self) -> Trace:
        """Return what has been recorded so far; other threads may go on recording."""
        events = self._events.copy()
        recorded = 1 + max((number for number, *_ in events), default=-1)
        return Trace(
            spans=tuple(
                Span(track=track, name=name, begin_ns=begin, end_ns=end, args=args)
                for _, track, name, begin, end, args in events
            ),
            label=self._label,
            versions=_versions(),
            dropped=recorded - len(events),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what has been recorded so far as Chrome trace JSON.

        Raises:
            OSError: the file cannot be written.
            ValueError: an argument of an event is nothing that JSON has.
        """
        save(self.trace(), path)


def _complaint(track: str, name: str, begin_ns: int, end_ns: int) -> str:
    if track not in TRACKS:
        return f"there is no track {track!r}; the tracks are {', '.join(TRACKS)}"
    return f"span {name!r} ends at {end_ns} ns, before it begins at {begin_ns} ns"


def _versions() -> dict[str, str]:
    # Only here, since this module is imported by the package that has the number.
    from .. import __version__

    return {"apex_jax": __version__, "python": platform.python_version(), **installed_versions(_PACKAGES)}
