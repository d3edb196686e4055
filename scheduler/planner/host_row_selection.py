"""A course: what could be done with all requests from now on, and how its host rows ride in the next plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from ..cost_model.component_times import Costs
from ..policy import Decision
from ..scheduler_state import Situation
from ..strategies import DEVICE_ONLY, Strategy, named
from ..strategies.steady import DeviceSide
from .forecast import next_load


class Course(NamedTuple):
    """What could be done from now on.

    Attributes:
        strategy: how host requests ride.
        most: requests that may be on the host.
        riding: of these under way at once, the others take turns.
        cohorts: of async_overlap that are under way at once; L + 1 if 0.
        rests: whether host rows rest in iterations in which they do not make up for the time that they take, as they
            may do beside prompts alone.
    """

    strategy: str
    most: int = 0
    riding: int = 0
    cohorts: int = 0
    rests: bool = False


ALONE = Course(DEVICE_ONLY.name)


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
    rows, strategy, share = min(situation.host_rows, course.riding), named(course.strategy), None
    if strategy.through and rows and situation.device_rows and (course.rests or (situation.prefill_tokens and begins)):
        fewer = FEWER if course.rests else FEWER[:1]
        rows, share = _where_it_pays(strategy, situation, rows, costs, fewer=fewer, begins=begins)
    return all_riding(course, rows, situation.num_layers, share)


def all_riding(course: Course, rows: int, num_layers: int, share: float | None = None) -> Decision:
    """Return the decision in which so many host rows of a course ride, that share of them in the first cohort."""
    if not rows:
        return Decision(strategy=DEVICE_ONLY.name, max_host_requests=course.most)
    strategy = named(course.strategy)
    most = strategy.most_cohorts(num_layers)
    share = strategy.shares(prompts=False)[0] if share is None else share
    lanes = strategy.lanes(rows, min(course.cohorts or most, most), share)
    return Decision(strategy=strategy.name, lanes=lanes, max_host_requests=course.most)


def _where_it_pays(
    strategy: Strategy, situation: Situation, most: int, costs: Costs, *, fewer: Sequence[float], begins: bool
) -> tuple[int, float]:
    """Return how many host rows that go through all layers ride in this iteration, and their share in the first cohort.

    Time for prompts counts as the tokens that the device would make in it, see `Candidate`.
    """
    load = next_load(situation, begins=begins)
    side, tokens = DeviceSide(costs, load), float(load.device_rows)
    alone = side.alone.iteration_s
    if load.prefill_tokens:
        tokens *= alone / DeviceSide(costs, next_load(situation, begins=False)).alone.iteration_s
    length, cohorts = situation.host_kv_tokens / situation.host_rows, strategy.most_cohorts(costs.num_layers)

    @cache
    def seconds(count: int, share: float) -> float:
        return side.timing(strategy.name, strategy.spread(count, cohorts, share), length).iteration_s

    shares = strategy.shares(prompts=load.prefill_tokens > 0)
    # What is the best share of all rows is that of fewer too, see `Valuation`.
    share = shares[0] if len(shares) == 1 else min(shares, key=lambda share: seconds(most, share))
    best, riding, before = tokens / alone, 0, 0.0
    for count in dict.fromkeys(math.ceil(most * part) for part in fewer):
        rate = (tokens + count) / seconds(count, share)
        if rate >= best:
            best, riding = rate, count
        if rate < before:
            break
        before = rate
    return riding, share
