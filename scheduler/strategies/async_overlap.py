"""APEX's asynchronous overlap: cohorts ride a boundary an iteration, and the host has almost a whole one for a layer.

    max(passes and device attention,  jobs,  a cohort's way through L layers / (L + 1))

A cohort is at each of the L + 1 boundaries in one of as many iterations, and makes a token in these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..cohorts import Cohorts, Departure, even
from ..cost_model.component_times import CohortCost
from ..cost_model.side import A, Side, total
from .asymmetric_pipelining import ASYMMETRIC_PIPELINING
from .base import Place, Strategy, alike


class AsyncOverlap(Strategy):
    """Any number of cohorts, which depart evenly spaced over the L + 1 iterations of a token."""

    name = "async_overlap"
    about = "cohorts board once an iteration, each at another layer; the host attends beside whole iterations"
    through = False

    def most_cohorts(self, num_layers: int) -> int:
        """Return one for each boundary."""
        return num_layers + 1

    def cohorts(self, wanted: int, num_layers: int) -> int:
        """Return so many, up to one for each boundary."""
        return min(wanted, num_layers + 1)

    def cohort_counts(self, num_layers: int) -> tuple[int, ...]:
        """Return as many as possible, four and two."""
        return tuple(sorted({min(count, num_layers + 1) for count in (num_layers + 1, 4, 2)}, reverse=True))

    def spread(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return cohorts of even size."""
        return even(rows, min(rows, cohorts))

    def lanes(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return the same, each as large as the largest."""
        count = min(rows, cohorts)
        return (-(-rows // count),) * count

    def under_way(self, lanes: Sequence[int], rows: int, num_layers: int) -> tuple[int, ...]:
        """Return cohorts of even size, no more than can be spaced."""
        count = min(len(lanes), num_layers + 1)
        return even(min(rows, int(sum(lanes) / len(lanes) * count)), count)

    def without_device(self, lanes: Sequence[int], rows: int) -> tuple[Strategy, Sequence[int]]:
        """Return two cohorts that go through: they need not wait for a later iteration."""
        return ASYMMETRIC_PIPELINING, even(min(rows, sum(lanes)), 2)

    def departures(self, lanes: Sequence[int], cohorts: Cohorts, plan: int) -> Iterator[Departure]:
        """Yield the lane whose turn it is."""
        for size in cohorts.due(lanes, plan):
            yield Departure(size, through=False)

    def place(self, cohort: int, cohorts: int, number: int, num_layers: int) -> Place:
        """Return one boundary, evenly spaced from the others'."""
        token, boundary = divmod(number - (num_layers + 1) * cohort // cohorts, num_layers + 1)
        return Place(token, boundary, boundary)

    def iterations_a_token(self, cohort: int, num_layers: int) -> int:
        """Return L + 1."""
        return num_layers + 1

    def tokens(self, under_way: Sequence[int], num_layers: int) -> float:
        """Return what one of L + 1 iterations makes."""
        return sum(under_way) / (num_layers + 1)

    def closed_form(self, side: Side[A], cohorts: Sequence[CohortCost]) -> tuple[A, A, A]:
        """Return the passes, of which cohorts share some, all jobs, and the longest way of a cohort."""
        amounts, layers, share = side.amounts, side.num_layers, 1 / (side.num_layers + 1)
        riding, jobs, ways, riders = [], [], [], 0
        for cohort, count in alike(cohorts):
            passes = side.passes(cohort) + side.head(cohort.rows)
            riders += count
            riding.append(passes * (count * share))
            jobs.append(side.jobs(cohort, count * share * layers))
            ways.append((passes + side.waits(cohort) + side.overhead) * share)
        alone = (side.passes() + side.head(0)) * (1 - riders * share)
        work: list[A] = [alone, side.attention, side.overhead, *riding]
        return total(work), total(jobs), amounts.longest(ways)


ASYNC_OVERLAP = AsyncOverlap()
