"""Requests to simulate: equal ones, and ones drawn from the moments of published workloads."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

MOST_SECONDS = 1e12
"""Bound of arrivals: far beyond what anybody records, and far below where seconds are no longer told apart."""


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
        time = self.arrival_s
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < MOST_SECONDS:
            raise ValueError(
                f"a request arrives at {time!r} s; a time of at least 0 and below {MOST_SECONDS:g} is needed"
            )
        for name in ("prompt", "output"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"a request has {value!r} {name} tokens; a whole number of at least 1 is needed")

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


def _log_normal(numbers: random.Random, mean: float, deviation: float) -> int:
    variance = math.log1p((deviation / mean) ** 2)
    return max(1, round(numbers.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))))


def _positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; a whole number of at least 1 is needed")
