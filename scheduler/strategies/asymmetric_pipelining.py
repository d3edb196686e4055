"""Two cohorts half a layer apart: one's host attention overlaps the other's passes, and each layer's weights are read
twice.

    L * max(S0 + S1 + a,  h0 + h1,  S0 + H + h0,  S1 + H + h1,  (S0 + S1 + a + h0 + h1 + H) / 2)

for L layers, each with passes S0 (the device's rows with the first cohort) and S1 (the second cohort), device attention
a, handovers H and host attentions h0, h1: the circles in which passes and jobs wait for each other, of which the last
leads through both time lines and twice through a layer. The longest sets the pace.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cost_model.component_times import CohortCost
from ..cost_model.side import A, Side
from .base import Strategy
from .layer_sync import LAYER_SYNC

FIRST_SHARES = (1 / 2, 1 / 4, 1 / 8)
"""Of host rows in the first cohort: half of them, and less where prompts are beside it. Its jobs overlap the second
cohort's passes, and the second one's those of the device's rows, which prompts make many times longer."""


class AsymmetricPipelining(Strategy):
    """Two cohorts, which ride all boundaries of every iteration: the first with the device's rows, the second alone."""

    name = "asymmetric_pipelining"
    about = "two cohorts half a layer apart; the host attends for one while the device passes the other"

    def most_cohorts(self, num_layers: int) -> int:
        """Return 2."""
        return 2

    def shares(self, *, prompts: bool) -> tuple[float, ...]:
        """Return a half, and less beside prompts."""
        return FIRST_SHARES if prompts else FIRST_SHARES[:1]

    def spread(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return two cohorts, or one of one row."""
        first = max(1, int(rows * share + 0.5))
        return (first, rows - first) if first < rows else (rows,)

    def closed_form(self, side: Side[A], cohorts: Sequence[CohortCost]) -> tuple[A, A, A]:
        """Return the passes with device attention, the jobs, and the longest circle.

        Where an iteration begins and ends the host has no jobs, so it takes a little longer than its longest circle: as
        long as a walk through its layers does."""
        if len(cohorts) == 1:
            return LAYER_SYNC.closed_form(side, cohorts)
        first, second = cohorts
        layers, amounts = side.num_layers, side.amounts
        own, other = side.passes(first), side.apart(second)
        head = side.head(first.rows + second.rows)
        jobs = side.jobs(first, layers) + side.jobs(second, layers)
        device = own + other + head + side.attention + side.overhead
        circles = (
            device,
            jobs + amounts.transfer(first.hop),
            own + head + side.waits(first),
            other + head + side.waits(second),
            (device + jobs + amounts.transfer(layers * second.hop)) * 0.5,
        )
        overhead = side.costs.overhead(cohorts=True)
        return (
            device,
            jobs,
            amounts.stretched(amounts.longest(circles), _last_pass_ends(side, first, second) + overhead),
        )


def _last_pass_ends(side: Side[A], first: CohortCost, second: CohortCost) -> float:
    """Return when the last pass of an iteration ends in which both cohorts ride through all layers."""
    costs, last = side.costs, side.num_layers
    shared, single = costs.layer(side.width + first.width), costs.layer(second.width)
    attention = side.attention_s / last
    _, _, _, job, hop, boarding = first
    _, _, _, other_job, other_hop, other_boarding = second
    now = ready = other_ready = late = other_late = 0.0
    # Thousands of these are walked through for a decision: comparisons are quicker than `max`.
    for boundary in range(last):
        share, began, before, other_before = costs.share(boundary), now, late, other_late
        now = (now if now > ready else ready) + boarding + share * shared
        handed = now + hop
        ready = (handed if handed > other_ready else other_ready) + job
        now += attention
        now = (now if now > other_ready else other_ready) + other_boarding + share * single
        handed = now + other_hop
        other_ready = (handed if handed > ready else ready) + other_job
        late, other_late = ready - now, other_ready - now
        if boundary and abs(late - before) < 1e-12 * now and abs(other_late - other_before) < 1e-12 * now:
            # The jobs are as late as they were a layer ago, and so they will be in all layers to come.
            now += (last - 1 - boundary) * (now - began)
            ready, other_ready = now + late, now + other_late
            break
    share = costs.share(last)
    now = max(now, ready) + boarding + share * shared
    now = max(now, other_ready) + other_boarding + share * single
    return now + costs.head(side.load.device_tokens + first.rows + second.rows)


ASYMMETRIC_PIPELINING = AsymmetricPipelining()
