"""How the host rows of a course ride in the next plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..cost_model.pacing import Pacing
from ..plan import Strategy
from ..policy import Decision, Situation
from .candidates import FIRST_SHARES
from .forecast import next_load
from .journey import Course

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
    rows, strategy = min(situation.host_rows, course.riding), course.strategy
    if not rows:
        return Decision(strategy="device_only", max_host_requests=course.most)
    if strategy == "async_overlap":
        return Decision(strategy=strategy, lanes=_spaced(course, rows, situation), max_host_requests=course.most)
    first = (rows + 1) // 2 if strategy == "asymmetric_pipelining" else rows
    if situation.device_rows and (course.rests or (situation.prefill_tokens and begins)):
        fewer = FEWER if course.rests else FEWER[:1]
        strategy, rows, first = _where_it_pays(strategy, situation, rows, pacing, fewer=fewer, begins=begins)
    if strategy == "device_only":
        return Decision(strategy="device_only", max_host_requests=course.most)
    lanes = (first, rows - first) if first < rows else (rows,)
    return Decision(strategy=strategy, lanes=lanes, max_host_requests=course.most)


def _spaced(course: Course, rows: int, situation: Situation) -> tuple[int, ...]:
    """Return the lanes of cohorts that depart evenly spaced."""
    boundaries = situation.num_layers + 1
    under_way = min(rows, course.cohorts or boundaries, boundaries)
    return (-(-rows // under_way),) * under_way


def _where_it_pays(
    strategy: Strategy, situation: Situation, most: int, pacing: Pacing, *, fewer: Sequence[float], begins: bool
) -> tuple[Strategy, int, int]:
    """Return whether host rows that go through all layers ride in this iteration, how many, and of them in the first
    cohort.

    Time for prompts counts as the tokens that the device would make in it, see `Candidate`.
    """
    rows, kv = situation.device_rows, situation.device_kv_tokens
    load = next_load(situation, begins=begins)
    prompt = (load.prefill_tokens, load.prefill_pairs)
    side = pacing.beside(rows, kv, prompt)
    tokens = rows * (side.alone / pacing.beside(rows, kv).alone if load.prefill_tokens else 1.0)
    length = situation.host_kv_tokens / situation.host_rows
    shares = (1.0,)
    if strategy == "asymmetric_pipelining":
        shares = FIRST_SHARES if load.prefill_tokens else FIRST_SHARES[:1]
    best, riding, first = tokens / side.alone, 0, 0
    for count in dict.fromkeys(math.ceil(most * part) for part in fewer):
        for share in shares:
            seconds = side.seconds(strategy, count, length, share)[0]
            if (tokens + count) / seconds >= best:
                best, riding, first = (tokens + count) / seconds, count, max(1, round(count * share))
    return (strategy, riding, first) if riding else ("device_only", 0, 0)
