"""A trace as data and as a file: the JSON that https://ui.perfetto.dev and chrome://tracing open.

The file is Chrome's trace format in its object form: complete events ("X") in microseconds from the first event,
one thread for each track, and `otherData` with what is needed to read the file back exactly.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..files.bounded_json import parse_json, read_text, shown
from ..files.whole_file import whole_file

Track = Literal["device", "host", "transfers", "waits", "python"]
Value = int | float | str | None

TRACKS: tuple[Track, ...] = get_args(Track)
FORMAT = "apex_jax trace 1"
PROCESS = "apex_jax"
_PROCESS_ID = 1
_MOST_BYTES = 1 << 30
_MOST_MICROSECONDS = 1e15
_ARTICLE = {int: "an integer", str: "a string", dict: "an object", list: "a list"}


class TraceError(ValueError):
    """A file that cannot be read as a trace; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that lasted. Times are in nanoseconds of one monotonic clock.

    Attributes:
        track: one of `TRACKS`.
        name: its kind, the same for all spans of a kind.
        begin_ns, end_ns: begin_ns <= end_ns.
        args: what tells it from others of its kind: layer, rows, cohort, iteration.
    """

    track: Track
    name: str
    begin_ns: int
    end_ns: int
    args: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a recorder has seen.

    Attributes:
        spans: in the order in which they were recorded.
        label: where the times come from, such as "measured", "emulated" or "simulated".
        versions: of what ran, by package.
        dropped: events that were forgotten since there were too many; the oldest ones.
    """

    spans: tuple[Span, ...]
    label: str = "measured"
    versions: Mapping[str, str] = field(default_factory=dict)
    dropped: int = 0


def nest(spans: Iterable[Span]) -> Iterator[tuple[Span, int, int]]:
    """Place spans so that in every row each two lie one after the other or one within the other.

    Yields:
        (span, row, depth) in the order of beginnings: the first row where the span fits, and how many others it lies
        within there.
    """
    rows: list[list[int]] = []
    for span in sorted(spans, key=lambda span: (span.begin_ns, -span.end_ns)):
        for ends in rows:
            while ends and ends[-1] <= span.begin_ns:
                ends.pop()
        row = next((row for row, ends in enumerate(rows) if not ends or span.end_ns <= ends[-1]), len(rows))
        if row == len(rows):
            rows.append([])
        yield span, row, len(rows[row])
        rows[row].append(span.end_ns)


def save(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace; what was in the file before stays until the new one is whole.

    Raises:
        OSError: the file cannot be written.
        ValueError: an argument of an event is nothing that JSON has.
    """
    origin = min((span.begin_ns for span in trace.spans), default=0)
    other = {
        "format": FORMAT,
        "label": trace.label,
        "versions": dict(trace.versions),
        "dropped_events": trace.dropped,
        "origin_ns": origin,
    }
    with whole_file(path) as file:
        file.write(f'{{"displayTimeUnit": "ms",\n"otherData": {json.dumps(other)},\n"traceEvents": [\n')
        file.write(",\n".join(_encode(event) for event in _events(trace, origin)))
        file.write("\n]}\n")


def _encode(event: dict[str, Any]) -> str:
    try:
        return json.dumps(event, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"event {event['name']!r} has args that are not all JSON: {event['args']!r}") from error


def _events(trace: Trace, origin: int) -> Iterator[dict[str, Any]]:
    placed: dict[Track, list[tuple[Span, int, int]]] = {track: [] for track in TRACKS}
    for track, found in placed.items():
        found += nest(span for span in trace.spans if span.track == track)
    yield _metadata("process_name", 0, {"name": PROCESS})
    for track, spans in placed.items():
        for row in range(1 + max((row for _, row, _ in spans), default=0)):
            thread = _thread(track, row)
            yield _metadata("thread_name", thread, {"name": track if row == 0 else f"{track} {row + 1}"})
            yield _metadata("thread_sort_index", thread, {"sort_index": thread})
    for track, spans in placed.items():
        for span, row, _ in spans:
            yield {
                "ph": "X",
                "name": span.name,
                "cat": track,
                "pid": _PROCESS_ID,
                "tid": _thread(track, row),
                "ts": (span.begin_ns - origin) / 1000,
                "args": dict(span.args),
                "dur": (span.end_ns - span.begin_ns) / 1000,
            }


def _thread(track: Track, row: int) -> int:
    """Return a thread's id. Spans of one thread have to nest: those that overlap otherwise get further threads."""
    return 1000 * (1 + TRACKS.index(track)) + row


def _metadata(name: str, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": _PROCESS_ID, "tid": thread, "args": args}


def load(path: str | os.PathLike[str]) -> Trace:
    """Read a trace back, times to the nanosecond; spans come in the order of the file.

    Raises:
        OSError: the file cannot be read.
        TraceError: it is truncated, damaged, or a trace of some other program.
    """
    path = Path(path)
    try:
        text = read_text(path, most_bytes=_MOST_BYTES)
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is not a text file; {_EXPECTED}") from error
    except ValueError as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        if text.startswith('{"displayTimeUnit"') and not text.rstrip().endswith("]}"):
            raise TraceError(f"{path} is truncated: it ends in line {text.count(chr(10)) + 1} without `]}}`") from error
        raise TraceError(f"{path} is not JSON (line {error.lineno}: {error.msg}); {_EXPECTED}") from error
    except ValueError as error:
        raise TraceError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("otherData"), dict):
        raise TraceError(f"{path} was not written by apex-jax: it has no `otherData`; {_EXPECTED}")
    if content["otherData"].get("format") != FORMAT:
        found = content["otherData"].get("format")
        raise TraceError(f"{path} has the format {shown(found)}; only {FORMAT!r} is understood; {_EXPECTED}")
    try:
        return _decode(content)
    except _Damaged as error:
        raise TraceError(f"{path} is damaged: {error}") from error


_EXPECTED = "expected is a file from `apex-jax generate --trace`"


class _Damaged(Exception):
    """Says which part of a file is not as it was written."""


def _decode(content: dict[str, Any]) -> Trace:
    other = content["otherData"]
    origin = _field(other, "origin_ns", int, "otherData")
    spans = []
    for number, event in enumerate(_field(content, "traceEvents", list, "the file")):
        where = f"event {number}"
        if not isinstance(event, dict):
            raise _Damaged(f"{where} is {shown(event)}, not an object")
        phase = event.get("ph")
        if phase == "X":
            begin = origin + _nanoseconds(event, "ts", where)
            duration = _nanoseconds(event, "dur", where)
            if duration < 0:
                raise _Damaged(f"{where} has a `dur` of {event['dur']!r}; it cannot be negative")
            spans.append(_span(event, begin, begin + duration, where))
        elif phase != "M":
            raise _Damaged(f"{where} has `ph` {shown(phase)}; 'X' and 'M' are understood")
    return Trace(
        spans=tuple(spans),
        label=_field(other, "label", str, "otherData"),
        versions=_field(other, "versions", dict, "otherData"),
        dropped=_field(other, "dropped_events", int, "otherData"),
    )


def _span(event: dict[str, Any], begin_ns: int, end_ns: int, where: str) -> Span:
    track = event.get("cat")
    if track not in TRACKS:
        raise _Damaged(f"{where} has the track {shown(track)}; the tracks are {', '.join(TRACKS)}")
    # Names recur thousands of times.
    name = sys.intern(_field(event, "name", str, where))
    return Span(track=track, name=name, begin_ns=begin_ns, end_ns=end_ns, args=_field(event, "args", dict, where))


def _nanoseconds(event: dict[str, Any], key: str, where: str) -> int:
    microseconds = event.get(key)
    if isinstance(microseconds, bool) or not isinstance(microseconds, int | float):
        raise _Damaged(f"{where} has a `{key}` of {shown(microseconds)}, not a number")
    if not abs(microseconds) <= _MOST_MICROSECONDS:
        raise _Damaged(f"{where} has a `{key}` of {microseconds:g}; the largest is {_MOST_MICROSECONDS:g}")
    return round(1000 * microseconds)


def _field(holder: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = holder.get(key)
    if not isinstance(value, kind):
        raise _Damaged(f"{where} has a `{key}` of {shown(value)}, not {_ARTICLE[kind]}")
    return value
