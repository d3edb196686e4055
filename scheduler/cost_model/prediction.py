"""What an iteration carries, in counts, and what it is predicted to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..plan import Cohort, Plan


class Terms(NamedTuple):
    """Seconds by what they are spent on: the terms that corrections have a factor for, and the overhead."""

    linear: float = 0.0
    device_attention: float = 0.0
    prefill_attention: float = 0.0
    host_attention: float = 0.0
    transfer: float = 0.0
    overhead: float = 0.0

    @property
    def total(self) -> float:
        """All of them together."""
        return sum(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortLoad:
    """A cohort in counts.

    Attributes:
        id: unique among the cohorts under way.
        rows: requests whose attention the host computes.
        kv_tokens: tokens that they attend to together.
        first, last: boundaries that it rides from and to.
        width: rows that it takes in a pass, those of ended requests included; `rows` if 0.
    """

    id: int
    rows: int
    kv_tokens: float
    first: int
    last: int
    width: int = 0

    @classmethod
    def of(cls, cohort: Cohort, plan: Plan) -> CohortLoad:
        """Return a plan's cohort in counts."""
        lengths = [plan.attended(row.length) for row in cohort.rows if row is not None]
        return cls(
            id=cohort.id,
            rows=len(lengths),
            kv_tokens=sum(lengths),
            first=cohort.first,
            last=cohort.last,
            width=len(cohort.rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """An iteration in counts: all that its time depends on.

    Attributes:
        device_rows, device_kv_tokens: decoding device requests and the tokens that they attend to together.
        prefill_tokens: prompt tokens.
        prefill_pairs: pairs of one of them and a token that it attends to, see `prompt_pairs`.
        prompt_samples: prompts that end in this iteration and so give a token.
        cohorts: as in a plan, in its order.
        evicted_tokens, fetched_tokens: tokens whose KV moves to the host or to the device.
    """

    device_rows: int = 0
    device_kv_tokens: float = 0
    prefill_tokens: int = 0
    prefill_pairs: float = 0
    prompt_samples: int = 0
    cohorts: tuple[CohortLoad, ...] = ()
    evicted_tokens: int = 0
    fetched_tokens: int = 0

    @classmethod
    def of(cls, plan: Plan, page_size: int) -> Load:
        """Return a plan in counts."""
        return cls(
            device_rows=len(plan.decode),
            device_kv_tokens=sum(plan.attended(row.length) for row in plan.decode),
            prefill_tokens=plan.prefill_tokens,
            prefill_pairs=plan_pairs(plan),
            prompt_samples=sum(chunk.samples for chunk in plan.prefill),
            cohorts=tuple(CohortLoad.of(cohort, plan) for cohort in plan.cohorts),
            evicted_tokens=page_size * sum(len(move.host_pages) for move in plan.evictions),
            fetched_tokens=page_size * sum(len(move.host_pages) for move in plan.fetches),
        )

    @property
    def device_tokens(self) -> int:
        """Output tokens of requests whose KV is on the device."""
        return self.device_rows + self.prompt_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What an iteration takes, or one of many alike.

    Attributes:
        strategy: of the plan.
        iteration_s: from one iteration's start to the next one's.
        device: seconds in which the device is occupied, by term.
        host: seconds in which the host is, by term.
        critical: `iteration_s` by what it would shrink with: the terms of the longest chain of things that wait for
            each other.
        device_tokens, host_tokens: output tokens, of requests on either side.
        device_token_s, host_token_s: time per token of a request on either side; None where there is none.
        extrapolated: a count lies outside of what the profile covers.
        factors: corrections that these times were predicted with.
    """

    strategy: str
    iteration_s: float
    device: Terms
    host: Terms
    critical: Terms
    device_tokens: float
    host_tokens: float
    device_token_s: float | None
    host_token_s: float | None
    extrapolated: bool
    factors: Terms

    @property
    def tokens(self) -> float:
        """Output tokens of both sides."""
        return self.device_tokens + self.host_tokens

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of both sides a second."""
        return self.tokens / self.iteration_s if self.iteration_s else 0.0

    @property
    def device_busy_s(self) -> float:
        """Seconds in which the device is occupied."""
        return self.device.total

    @property
    def host_busy_s(self) -> float:
        """Seconds in which the host is occupied."""
        return self.host.total

    @property
    def device_wait_s(self) -> float:
        """Seconds in which the device waits for the host."""
        return max(0.0, self.iteration_s - self.device_busy_s)


class Timing(NamedTuple):
    """What of a prediction decisions are made by.

    Attributes:
        iteration_s: from one iteration's start to the next one's.
        device_busy_s, host_busy_s: seconds in which the device and the host are occupied.
        device_tokens, host_tokens: output tokens, of requests on either side.
    """

    iteration_s: float
    device_busy_s: float
    host_busy_s: float
    device_tokens: float
    host_tokens: float

    @property
    def device_wait_s(self) -> float:
        """Seconds in which the device waits for the host."""
        return max(0.0, self.iteration_s - self.device_busy_s)


def prompt_pairs(tokens: int, start: int, window: int | None = None) -> float:
    """Return the pairs of one of `tokens` prompt tokens and a token that it attends to, if `start` tokens precede them.

    Those are itself and all before it, `window` of them at most.
    """
    pairs = tokens * (start + (tokens + 1) / 2)
    if window is None or (beyond := start + tokens - window) <= 0:
        return pairs
    # The last one leaves out so many, each before it one less.
    leaving = min(tokens, beyond)
    return pairs - leaving * (beyond - (leaving - 1) / 2)


def plan_pairs(plan: Plan) -> float:
    """Return the pairs of a plan's prompts."""
    return sum(prompt_pairs(len(chunk.tokens), chunk.start, plan.sliding_window) for chunk in plan.prefill)
