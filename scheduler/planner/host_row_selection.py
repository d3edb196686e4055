"""How the host rows of a course ride in the next plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..cost_model.component_times import Costs
from ..policy import Decision, Situation
from ..strategies import DEVICE_ONLY, Strategy, named
from ..strategies.steady import Pace
from .course import Course
from .forecast import next_load

FEWER = (1.0, 0.75, 0.5, 0.25)
"""Parts of the host rows that may ride in an iteration in which not all of them have to."""


def riding(course: Course, situation: Situation, costs: Costs, *, begins: bool) -> Decision:
    """Return the decision that a course comes to.

    Args:
        course: what is kept to.
        situation: the requests and the memory there are.
        costs: times of the parts of iterations.
        begins: whether the next iteration computes the prompts that the situation speaks of.
    """
    rows, strategy = min(situation.host_rows, course.riding), named(course.strategy)
    share = strategy.shares(prompts=False)[0]
    if strategy.through and rows and situation.device_rows and (course.rests or (situation.prefill_tokens and begins)):
        fewer = FEWER if course.rests else FEWER[:1]
        rows, share = _where_it_pays(strategy, situation, rows, costs, fewer=fewer, begins=begins)
    if not rows:
        return Decision(strategy=DEVICE_ONLY.name, max_host_requests=course.most)
    most = strategy.most_cohorts(situation.num_layers)
    lanes = strategy.lanes(rows, min(course.cohorts or most, most), share)
    return Decision(strategy=strategy.name, lanes=lanes, max_host_requests=course.most)


def _where_it_pays(
    strategy: Strategy, situation: Situation, most: int, costs: Costs, *, fewer: Sequence[float], begins: bool
) -> tuple[int, float]:
    """Return how many host rows that go through all layers ride in this iteration, and their share in the first cohort.

    Time for prompts counts as the tokens that the device would make in it, see `Candidate`.
    """
    load = next_load(situation, begins=begins)
    side, tokens = Pace(costs, load), float(load.device_rows)
    if load.prefill_tokens:
        tokens *= side.alone / Pace(costs, next_load(situation, begins=False)).alone
    length, cohorts = situation.host_kv_tokens / situation.host_rows, strategy.most_cohorts(costs.num_layers)

    def seconds(count: int, share: float) -> float:
        return side.seconds(strategy.name, strategy.spread(count, cohorts, share), length)[0]

    shares = strategy.shares(prompts=load.prefill_tokens > 0)
    # What is the best share of all rows is that of fewer too, see `Valuation`.
    share = shares[0] if len(shares) == 1 else min(shares, key=lambda share: seconds(most, share))
    best, riding = tokens / side.alone, 0
    for count in dict.fromkeys(math.ceil(most * part) for part in fewer):
        if (rate := (tokens + count) / seconds(count, share)) >= best:
            best, riding = rate, count
    return riding, share
