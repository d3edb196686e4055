"""Requests to simulate: equal ones, ones drawn from the moments of published workloads, and recorded traces."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request as a simulation sees it.

    Attributes:
        arrival_s: when it arrives, seconds after the start.
        prompt: its prompt tokens, at least one.
        output: the tokens it produces, at least one.
    """

    arrival_s: float
    prompt: int
    output: int

    def __post_init__(self) -> None:
        if not isinstance(self.arrival_s, int | float) or not math.isfinite(self.arrival_s) or self.arrival_s < 0:
            raise ValueError(f"a request arrives at {self.arrival_s!r} s; a time of at least 0 is needed")
        for name in ("prompt", "output"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"a request has {value!r} {name} tokens; at least 1 is needed")

    @property
    def total(self) -> int:
        """Prompt and output tokens."""
        return self.prompt + self.output


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Means and standard deviations of lengths, from which log-normal lengths are drawn.

    Attributes:
        prompt, output: (mean, standard deviation), in tokens.
        source: where they were published.
    """

    prompt: tuple[float, float]
    output: tuple[float, float]
    source: str

    def __post_init__(self) -> None:
        for name in ("prompt", "output"):
            mean, deviation = getattr(self, name)
            if not (math.isfinite(mean) and math.isfinite(deviation) and mean >= 1 and deviation >= 0):
                raise ValueError(
                    f"{name} lengths have mean {mean} and deviation {deviation}; at least 1 and 0 are needed"
                )

    def draw(self, requests: int, *, seed: int = 0) -> list[Job]:
        """Return requests that arrive at once, their lengths drawn with that seed.

        A log-normal distribution of mean m and deviation s has the parameters sigma^2 = ln(1 + s^2 / m^2) and
        mu = ln(m) - sigma^2 / 2.
        """
        _positive("requests", requests)
        numbers = random.Random(seed)
        return [
            Job(arrival_s=0.0, prompt=_log_normal(numbers, *self.prompt), output=_log_normal(numbers, *self.output))
            for _ in range(requests)
        ]


_AZURE = "Azure LLM inference trace 2023, {}: moments of the published file (8,819 and 19,366 requests)"

PUBLISHED: dict[str, Moments] = {
    "azure-code": Moments(prompt=(2048.0, 1974.0), output=(28.0, 60.0), source=_AZURE.format("code")),
    "azure-conversation": Moments(prompt=(1155.0, 1109.0), output=(211.0, 163.0), source=_AZURE.format("conversation")),
    "summarisation": Moments(
        prompt=(373.0, 104.0), output=(45.0, 9.0), source="OpenAI summarisation comparisons, 2,000 of their lengths"
    ),
}
"""Workloads that ship with the project as moments of their lengths."""


def equal(*, prompt: int, output: int, requests: int) -> list[Job]:
    """Return that many requests of one size, all at once."""
    _positive("requests", requests)
    return [Job(arrival_s=0.0, prompt=prompt, output=output)] * requests


def arriving(jobs: Iterable[Job], *, rate: float, seed: int = 0) -> list[Job]:
    """Return the requests with random arrivals, independent of each other, `rate` a second on average."""
    if isinstance(rate, bool) or not math.isfinite(rate) or rate <= 0:
        raise ValueError(f"rate is {rate!r}; a number of requests a second above 0 is needed")
    numbers = random.Random(seed)
    now, result = 0.0, []
    for job in jobs:
        result.append(replace(job, arrival_s=now))
        now += numbers.expovariate(rate)
    return result


def at_once(jobs: Iterable[Job]) -> list[Job]:
    """Return the requests as if all arrived at the start."""
    return [replace(job, arrival_s=0.0) for job in jobs]


def fitting(jobs: Iterable[Job], *, tokens: int) -> list[Job]:
    """Return the requests whose prompt and output fit into that many tokens."""
    return [job for job in jobs if job.total <= tokens]


def read_trace(file: Path) -> list[Job]:
    """Read requests from a file.

    Two formats are understood. CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens is the form of the
    Azure traces; arrivals count from the first row. JSON holds a list of objects with `prompt` and `max_tokens`, and
    if they arrive one after the other, `arrival_s`. Requests without output are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is in neither format, an entry is malformed, or nothing is left.
    """
    text = file.read_text(encoding="utf-8")
    jobs = sorted(_json(file, text) if file.suffix == ".json" else _azure(file, text), key=lambda job: job.arrival_s)
    if not jobs:
        raise ValueError(f"{file} holds no request with output")
    return jobs


def _azure(file: Path, text: str) -> Iterator[Job]:
    rows = csv.DictReader(text.splitlines())
    wanted = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    missing = [name for name in wanted if name not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(f"{file} has no column {missing[0]}; {', '.join(wanted)} are needed, or a .json file")
    first: datetime | None = None
    for line, row in enumerate(rows, start=2):
        try:
            then = datetime.fromisoformat(row["TIMESTAMP"][:26])
            first = first or then
            prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            if output:
                yield Job(arrival_s=(then - first).total_seconds(), prompt=prompt, output=output)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {line}: {error}") from error


def _json(file: Path, text: str) -> Iterator[Job]:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(items, list):
        raise ValueError(f"{file} holds a JSON {type(items).__name__}; a list of requests is needed")
    for index, item in enumerate(items):
        try:
            if item["max_tokens"]:
                yield Job(arrival_s=item.get("arrival_s", 0.0), prompt=item["prompt"], output=item["max_tokens"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{file}, request {index}: {what}") from error


def _log_normal(numbers: random.Random, mean: float, deviation: float) -> int:
    variance = math.log1p((deviation / mean) ** 2)
    return max(1, round(numbers.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))))


def _positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; a whole number of at least 1 is needed")
