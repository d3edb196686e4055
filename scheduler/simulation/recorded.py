"""Recorded requests, read from files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ...files.bounded_json import brief, parse_json, read_text, shown
from .workload import Job

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_KEYS = ("prompt", "max_tokens", "arrival_s")
_MOST_BYTES = 1 << 30
_MOST_TOKENS = 10**9


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a file holds.

    Attributes:
        jobs: the requests with output, in the order of their arrivals.
        has_arrivals: whether the file says of each when it arrived.
        without_output: how many others it holds, which are left out.
    """

    jobs: tuple[Job, ...]
    has_arrivals: bool
    without_output: int


def read_trace(file: Path) -> Recording:
    """Read requests from a file.

    Two formats are understood. CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens is the form of the
    Azure traces; arrivals count from the first row, and other columns do not matter. JSON holds a list of objects with
    `prompt` and `max_tokens`, and if it is known when they arrived, `arrival_s`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is in neither format, an entry is malformed, or no request has output.
    """
    try:
        text = read_text(file, most_bytes=_MOST_BYTES)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    try:
        found = list(_json(file, text) if file.suffix == ".json" else _azure(file, text))
    except csv.Error as error:
        raise ValueError(f"{file} is no CSV: {error}") from error
    jobs = sorted((job for job, _ in found if job is not None), key=lambda job: job.arrival_s)
    if not jobs:
        raise ValueError(f"{file} holds no request with output")
    return Recording(
        jobs=tuple(jobs),
        has_arrivals=all(arrived for _, arrived in found),
        without_output=len(found) - len(jobs),
    )


_Entry = tuple[Job | None, bool]
"""A request, or None without output, and whether it is said when it arrived."""


def _azure(file: Path, text: str) -> Iterator[_Entry]:
    rows = csv.DictReader(text.splitlines())
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(f"{file} has no column {missing[0]}; {', '.join(_COLUMNS)} are needed, or a .json file")
    first: datetime | None = None
    for line, row in enumerate(rows, start=2):
        try:
            then = _time(row["TIMESTAMP"], first)
            first = first or then
            prompt, output = (_whole(name, row[name]) for name in _COLUMNS[1:])
            yield _job((then - first).total_seconds(), prompt, output), True
        except ValueError as error:
            raise ValueError(f"{file}, line {line}: {brief(error)}") from error


def _time(text: str | None, first: datetime | None) -> datetime:
    try:
        then = datetime.fromisoformat(text or "")
    except ValueError as error:
        raise ValueError(f"TIMESTAMP is {text!r}; a time such as 2023-11-16 18:15:46.68 is needed") from error
    if first is not None and (then.tzinfo is None) != (first.tzinfo is None):
        raise ValueError(f"TIMESTAMP is {text!r}; either all times or none have an offset from UTC")
    return then


def _whole(name: str, text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}; a whole number is needed") from error


def _json(file: Path, text: str) -> Iterator[_Entry]:
    try:
        items = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(items, list):
        raise ValueError(f"{file} holds a JSON {type(items).__name__}; a list of requests is needed")
    for index, item in enumerate(items):
        try:
            yield _item(item)
        except ValueError as error:
            raise ValueError(f"{file}, request {index}: {brief(error)}") from error


def _item(item: object) -> _Entry:
    if not isinstance(item, dict):
        raise ValueError(f"{shown(item)} is no object with {', '.join(_KEYS)}")
    for key in item:
        if key not in _KEYS:
            raise ValueError(f"there is the key {key!r}; allowed are {', '.join(_KEYS)}")
    for key in _KEYS[:2]:
        if key not in item:
            raise ValueError(f"no {key!r}")
    return _job(item.get("arrival_s", 0.0), item["prompt"], item["max_tokens"]), "arrival_s" in item


def _job(arrival_s: float, prompt: int, output: int) -> Job | None:
    # What would make no request is checked like all others.
    for name, count in (("prompt", prompt), ("output", output)):
        if isinstance(count, int) and count > _MOST_TOKENS:
            raise ValueError(f"a request has {shown(count)} {name} tokens; at most {_MOST_TOKENS:,} are allowed")
    without = type(output) is int and output == 0
    job = Job(arrival_s=arrival_s, prompt=prompt, output=1 if without else output)
    return None if without else job
