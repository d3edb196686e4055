"""What a strategy is: which cohorts of host rows there are, where they ride, and what an iteration of it takes."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from ..cohorts import Cohorts, Departure
from ..cost_model.component_times import CohortCost
from ..cost_model.prediction import Timing
from ..cost_model.side import A, Side


class Place(NamedTuple):
    """Where a cohort is in one of many iterations that are alike.

    Attributes:
        token: how many tokens its requests have made before; negative where it has not departed yet.
        first, last: boundaries that it rides from and to.
    """

    token: int
    first: int
    last: int


class Strategy(ABC):
    """A way in which host rows take part in iterations. One object a strategy; it holds no state.

    *Lanes* are what a decision says: the most rows of each cohort. Cohorts *under way* are those there are at once.

    Attributes:
        name: what it is called everywhere.
        about: what it does, in a line.
        through: its host rows go through all layers in an iteration, so that each iteration can be with or without.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    through: ClassVar[bool] = True

    @abstractmethod
    def most_cohorts(self, num_layers: int) -> int:
        """Return how many cohorts it may have."""

    def cohorts(self, wanted: int, num_layers: int) -> int:
        """Return how many cohorts it has where somebody wants so many."""
        return self.most_cohorts(num_layers)

    def cohort_counts(self, num_layers: int) -> tuple[int, ...]:
        """Return the numbers of cohorts that are worth comparing."""
        return (self.most_cohorts(num_layers),)

    def shares(self, *, prompts: bool) -> tuple[float, ...]:
        """Return the shares of host rows in the first cohort that are worth comparing, beside prompts or without; the
        first is that of who compares nothing."""
        return (1.0,)

    @abstractmethod
    def spread(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return the rows of each cohort under way.

        Args:
            rows: host rows, at least one.
            cohorts: how many there may be.
            share: of the rows in the first cohort, where that is not like the others.
        """

    def lanes(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return what to decide for the same."""
        return self.spread(rows, cohorts, share)

    def fixed_lanes(self, rows: int, cohorts: int, num_layers: int) -> tuple[int, ...]:
        """Return lanes of even size in which all host rows find a place, of as many cohorts whatever their number."""
        count = self.cohorts(cohorts, num_layers)
        return (max(1, -(-rows // count)),) * count if count else ()

    def under_way(self, lanes: Sequence[int], rows: int, num_layers: int) -> tuple[int, ...]:
        """Return the cohorts that `rows` host requests form under a decision, beside device rows."""
        filled: list[int] = []
        for size in lanes:
            filled.append(min(size, rows - sum(filled)))
        return tuple(size for size in filled if size)

    def without_device(self, lanes: Sequence[int], rows: int) -> tuple[Strategy, Sequence[int]]:
        """Return the strategy that this one amounts to where the device has no rows of its own, and its lanes."""
        return self, lanes

    def departures(self, lanes: Sequence[int], cohorts: Cohorts, plan: int) -> Iterator[Departure]:
        """Yield the cohorts that may depart with a plan, in their order, where there are device rows."""
        for size in lanes:
            yield Departure(size, through=True)

    def place(self, cohort: int, cohorts: int, number: int, num_layers: int) -> Place:
        """Return where a cohort of so many is in iteration `number` of many alike, in which cohort 0 departs first."""
        return Place(number, 0, num_layers)

    def iterations_a_token(self, cohort: int, num_layers: int) -> int:
        """Return how many iterations a cohort's token takes, no fewer than those before it need."""
        return 1

    def tokens(self, under_way: Sequence[int], num_layers: int) -> float:
        """Return how many tokens cohorts of so many rows make in an iteration on average."""
        return sum(under_way)

    def excess(self, timing: Timing) -> float:
        """Return the seconds of an iteration by which the host takes longer than it has."""
        return timing.host_busy_s - timing.device_busy_s

    @abstractmethod
    def closed_form(self, side: Side[A], cohorts: Sequence[CohortCost]) -> tuple[A, A, A]:
        """Return for how long the device and the host are busy in an iteration that repeats, and the longest chain of
        things on both that wait for each other; an iteration takes the longest of the three. There is at least one
        cohort."""


def alike(cohorts: Sequence[CohortCost]) -> list[tuple[CohortCost, int]]:
    """Return the kinds of cohorts and how many there are of each, where like ones stand together."""
    return [(kind, len(list(same))) for kind, same in itertools.groupby(cohorts)]
