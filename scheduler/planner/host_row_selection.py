"""How the host rows of a course ride in the next plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..policy import Decision, Situation
from ..strategies import DEVICE_ONLY, Strategy, named
from .forecast import next_load
from .journey import Course
from .pacing import Pacing

FEWER = (1.0, 0.75, 0.5, 0.25)
"""Parts of the host rows that may ride in an iteration in which not all of them have to."""


def riding(course: Course, situation: Situation, pacing: Pacing, *, begins: bool) -> Decision:
    """Return the decision that a course comes to.

    Args:
        course: what is kept to.
        situation: the requests and the memory there are.
        pacing: what iterations take.
        begins: whether the next iteration computes the prompts that the situation speaks of.
    """
    rows, strategy = min(situation.host_rows, course.riding), named(course.strategy)
    share = strategy.shares(prompts=False)[0]
    if strategy.through and rows and situation.device_rows and (course.rests or (situation.prefill_tokens and begins)):
        fewer = FEWER if course.rests else FEWER[:1]
        rows, share = _where_it_pays(strategy, situation, rows, pacing, fewer=fewer, begins=begins)
    if not rows:
        return Decision(strategy=DEVICE_ONLY.name, max_host_requests=course.most)
    most = strategy.most_cohorts(situation.num_layers)
    lanes = strategy.lanes(rows, min(course.cohorts or most, most), share)
    return Decision(strategy=strategy.name, lanes=lanes, max_host_requests=course.most)


def _where_it_pays(
    strategy: Strategy, situation: Situation, most: int, pacing: Pacing, *, fewer: Sequence[float], begins: bool
) -> tuple[int, float]:
    """Return how many host rows that go through all layers ride in this iteration, and their share in the first cohort.

    Time for prompts counts as the tokens that the device would make in it, see `Candidate`.
    """
    rows, kv = situation.device_rows, situation.device_kv_tokens
    load = next_load(situation, begins=begins)
    prompt = (load.prefill_tokens, load.prefill_pairs)
    side = pacing.beside(rows, kv, prompt)
    tokens = rows * (side.alone / pacing.beside(rows, kv).alone if load.prefill_tokens else 1.0)
    length = situation.host_kv_tokens / situation.host_rows
    best, found = tokens / side.alone, (0, 0.0)
    for count in dict.fromkeys(math.ceil(most * part) for part in fewer):
        for share in strategy.shares(prompts=load.prefill_tokens > 0):
            seconds = side.seconds(strategy.name, count, length, share)[0]
            if (tokens + count) / seconds >= best:
                best, found = (tokens + count) / seconds, (count, share)
    return found
