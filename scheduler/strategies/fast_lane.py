"""A small cohort that rides every boundary of every iteration, as in layer_sync, beside those of async_overlap.

Rows of the lane get a token in each iteration, the others one in L + 1. Where a large cohort boards, its rows make a
pass of their own after the lane's, and then the lane's next job waits in line behind the large one. So with passes S
and device attention a, handovers H and host attention h of the lane, an iteration takes

    L * (S + max(a, H + h))  +  what each large cohort that boards delays the two layers behind it by

The latter is that pass, and the large job as far as the host had no time to spare for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..cohorts import Cohorts, Departure
from ..cost_model.component_times import CohortCost
from ..cost_model.prediction import Timing
from ..cost_model.side import A, Side
from .async_overlap import ASYNC_OVERLAP
from .base import Place, Strategy, alike
from .layer_sync import LAYER_SYNC


class FastLane(Strategy):
    """The first cohort is the lane. The others depart evenly spaced, at most at every second boundary."""

    name = "fast_lane"
    about = "a small cohort goes through every layer, for requests in a hurry; the others ride as in async_overlap"
    through = False

    def most_cohorts(self, num_layers: int) -> int:
        """Return the lane and one cohort for every second boundary."""
        return 1 + (num_layers + 1) // 2

    def cohorts(self, wanted: int, num_layers: int) -> int:
        """Return the lane and so many more, up to one for every second boundary."""
        return min(1 + wanted, self.most_cohorts(num_layers))

    def cohort_counts(self, num_layers: int) -> tuple[int, ...]:
        """Return the lane and one more: each further one costs another pass."""
        return (2,)

    def shares(self, *, prompts: bool) -> tuple[float, ...]:
        """Return what part of the rows is in the lane."""
        return (1 / 8,)

    def spread(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return the lane, and the others as in async_overlap."""
        lane = max(1, int(rows * share))
        if lane == rows or cohorts == 1:
            return (rows,)
        return (lane, *ASYNC_OVERLAP.spread(rows - lane, cohorts - 1, share))

    def lanes(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return the same, the others each as large as the largest."""
        lane, *others = self.spread(rows, cohorts, share)
        return (lane, *[others[0]] * len(others)) if others else (lane,)

    def fixed_lanes(self, rows: int, cohorts: int, num_layers: int) -> tuple[int, ...]:
        """Return the lane with its share of the rows, and room for all others beside it."""
        count = self.cohorts(cohorts, num_layers)
        return self.lanes(max(rows, count), count, self.shares(prompts=False)[0])

    def under_way(self, lanes: Sequence[int], rows: int, num_layers: int) -> tuple[int, ...]:
        """Return the lane filled first."""
        lane = min(lanes[0], rows)
        others = lanes[1 : self.most_cohorts(num_layers)]
        if not others or lane == rows:
            return (lane,)
        return (lane, *ASYNC_OVERLAP.under_way(others, rows - lane, num_layers))

    def without_device(self, lanes: Sequence[int], rows: int) -> tuple[Strategy, Sequence[int]]:
        """Return what async_overlap does: all go through."""
        return ASYNC_OVERLAP.without_device(lanes, rows)

    def departures(self, lanes: Sequence[int], cohorts: Cohorts, plan: int) -> Iterator[Departure]:
        """Yield the lane, and the cohort of the others whose turn it is."""
        if lanes:
            yield Departure(lanes[0], through=True, hurried=True)
            yield from ASYNC_OVERLAP.departures(lanes[1:], cohorts, plan)

    def place(self, cohort: int, cohorts: int, number: int, num_layers: int) -> Place:
        """Return all boundaries for the lane, one for another cohort."""
        if cohort == 0:
            return LAYER_SYNC.place(cohort, cohorts, number, num_layers)
        return ASYNC_OVERLAP.place(cohort - 1, cohorts - 1, number, num_layers)

    def iterations_a_token(self, cohort: int, num_layers: int) -> int:
        """Return 1 for the lane, L + 1 for the others."""
        return num_layers + 1 if cohort else 1

    def tokens(self, under_way: Sequence[int], num_layers: int) -> float:
        """Return a token for each row of the lane, and what async_overlap makes."""
        return under_way[0] + ASYNC_OVERLAP.tokens(under_way[1:], num_layers)

    def excess(self, timing: Timing) -> float:
        """Return for how long the device waits, as in layer_sync."""
        return LAYER_SYNC.excess(timing)

    def closed_form(self, side: Side[A], cohorts: Sequence[CohortCost]) -> tuple[A, A, A]:
        """Return passes with attention on the device, all jobs, and the lane's chain with what large cohorts add.

        That is exact for cohorts whose boundaries lie apart, in the middle of an iteration; at its ends, where the lane
        has no job, a large one delays less."""
        lane, layers, share = cohorts[0], side.num_layers, 1 / (side.num_layers + 1)
        device, host, chain = LAYER_SYNC.closed_form(side, cohorts[:1])
        seconds = side.amounts.longest((device, chain))
        for large, count in alike(cohorts[1:]):
            apart = side.apart(large) * (count * share)
            head = side.head(lane.rows + large.rows) * (count * share) + side.head(lane.rows) * (-count * share)
            host = host + side.jobs(large, count * share * layers)
            device = device + apart + head
            seconds = seconds + head + self._delay(side, lane, large, count * share)
        return device, host, seconds

    def _delay(self, side: Side[A], lane: CohortCost, large: CohortCost, boardings: float) -> A:
        """Return by how much an iteration becomes longer in which so many large cohorts board on average."""
        costs, amounts, layers = side.costs, side.amounts, side.num_layers
        attention = side.attention_s / layers
        shared = costs.layer(side.width + lane.width) + lane.boarding
        apart = costs.layer(large.width) + large.boarding
        ready = lane.hop + lane.job
        # After the shared pass of the boundary where the large cohort boards: its own pass, the lane's next one, and
        # when the one behind that may begin.
        passed = attention + apart
        free = max(passed + large.hop, ready) + large.job
        next_pass = max(passed, ready) + shared
        after = max(next_pass + attention, max(next_pass + lane.hop, free) + lane.job)
        delay = after - (2 * max(attention, ready) + shared)
        own = side.apart(large) * boardings
        if delay < apart:
            # The lane was being waited for anyway.
            return own * (delay / apart)
        return own + amounts.host_attention(layers * (delay - apart) * boardings)


FAST_LANE = FastLane()
