"""What a scheduler asks before each plan: which strategy, and how many host rows ride together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .roster import Roster
from .strategies import named

DEFAULT_COHORTS = 2
"""Of strategies with any number of cohorts, where nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The requests that exist and the memory that is free, in counts.

    Attributes:
        num_layers: L.
        device_rows, device_kv_tokens: decoding device requests and the tokens of their contexts together.
        host_rows, host_kv_tokens: the same for host requests, those under way in cohorts included.
        prefill_tokens: prompt tokens that the next iteration will compute.
        prefill_context: tokens in front of those, which they attend to.
        waiting: requests without pages.
        waiting_tokens: their prompts together.
        waiting_first: tokens of the one that waits first.
        waiting_output: output tokens that they may still produce, at most.
        remaining_tokens: output tokens that the running requests may still produce, at most.
        host_remaining_tokens: the same for host requests alone.
        free_device_tokens, free_host_tokens: tokens that the free pages of either side hold.
        mid_token_rows: host rows that are between two layers.
        oldest_host_wait: iterations since the host request that waits longest last finished a token.
        undecided: iterations without prompts since the last decision; a simulator takes many in one step.
        roster: gives the lengths of all requests, for a policy that looks ahead; None where they are not known.
    """

    num_layers: int
    device_rows: int = 0
    device_kv_tokens: int = 0
    host_rows: int = 0
    host_kv_tokens: int = 0
    prefill_tokens: int = 0
    prefill_context: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    waiting_first: int = 0
    waiting_output: int = 0
    remaining_tokens: int = 0
    host_remaining_tokens: int = 0
    free_device_tokens: int = 0
    free_host_tokens: int = 0
    mid_token_rows: int = 0
    oldest_host_wait: int = 0
    undecided: int = 0
    roster: Callable[[], Roster] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How the next plans are built.

    Attributes:
        strategy: name of the strategy.
        lanes: most host rows of each cohort that it has; empty where none are to depart.
        max_host_requests: requests that may live on the host; more are not evicted to it. Those that are there
            already stay until they end or are fetched.
        evict, fetch, preempt: ids of requests that go to the host, come to the device, or wait again with the next plan
            although nobody needs it; the first two as far as they are between two tokens and there is room.
    """

    strategy: str
    lanes: tuple[int, ...] = ()
    max_host_requests: int = 0
    evict: tuple[int, ...] = ()
    fetch: tuple[int, ...] = ()
    preempt: tuple[int, ...] = ()


class Policy(Protocol):
    """Chooses how plans are built."""

    def decide(self, situation: Situation) -> Decision:
        """Return the decision for the next plan; called before each of them, so it must be quick."""
        ...


@dataclass(frozen=True, kw_only=True)
class FixedPolicy:
    """Always the same strategy, with all host rows on board: the choice of somebody who measures.

    Attributes:
        strategy: the strategy.
        num_cohorts: cohorts of a strategy that may have several, up to as many as it can space.
        max_host_requests: requests that may live on the host.
    """

    strategy: str
    num_cohorts: int = DEFAULT_COHORTS
    max_host_requests: int = 0

    def decide(self, situation: Situation) -> Decision:
        """Return the strategy with lanes of even size for the host rows that exist."""
        lanes = named(self.strategy).fixed_lanes(situation.host_rows, self.num_cohorts, situation.num_layers)
        return Decision(strategy=self.strategy, lanes=lanes, max_host_requests=self.max_host_requests if lanes else 0)
