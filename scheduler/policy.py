"""What a scheduler asks before each plan: which strategy, and how many host rows ride together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .scheduler_state import Situation
from .strategies import named

DEFAULT_COHORTS = 2
"""Of strategies with any number of cohorts, where nobody says how many."""


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
