"""How the host rows of a course ride in the next plan."""

from __future__ import annotations

from collections.abc import Sequence

from .candidates import FIRST_SHARES, THROUGH
from .forecast import next_load
from .journey import Course
from .pacing import Pacing
from .plan import Strategy
from .policy import Decision, Situation


def riding(
    course: Course, situation: Situation, pacing: Pacing, strategies: Sequence[Strategy], *, begins: bool
) -> Decision:
    """Return the decision that a course comes to.

    Args:
        course: what is kept to.
        situation: the requests and the memory there are.
        pacing: what iterations take.
        strategies: those that may be chosen.
        begins: whether the next iteration computes the prompts that the situation speaks of.
    """
    rows, strategy = min(situation.host_rows, course.riding), course.strategy
    if not rows:
        return Decision(strategy="device_only", max_host_requests=course.most)
    if strategy == "async_overlap":
        return Decision(strategy=strategy, lanes=_spaced(course, rows, situation), max_host_requests=course.most)
    first = (rows + 1) // 2 if strategy == "asymmetric_pipelining" else rows
    if situation.prefill_tokens and begins:
        strategy, first = _beside_prompts(situation, rows, pacing, strategies)
    if strategy == "device_only":
        return Decision(strategy="device_only", max_host_requests=course.most)
    lanes = (first, rows - first) if first < rows else (rows,)
    return Decision(strategy=strategy, lanes=lanes, max_host_requests=course.most)


def _spaced(course: Course, rows: int, situation: Situation) -> tuple[int, ...]:
    """Return the lanes of cohorts that depart evenly spaced."""
    boundaries = situation.num_layers + 1
    spacing = max(1, boundaries // (course.cohorts or boundaries))
    under_way = min(rows, boundaries // spacing)
    return (-(-rows // under_way),) * min(rows, -(-boundaries // spacing))


def _beside_prompts(
    situation: Situation, riding: int, pacing: Pacing, strategies: Sequence[Strategy]
) -> tuple[Strategy, int]:
    """Return how host rows that go through all layers best ride beside prompts, and the rows of the first cohort.

    Time for prompts counts as the tokens that the device would make in it, see `Candidate`.
    """
    rows, kv = situation.device_rows, situation.device_kv_tokens
    load = next_load(situation, begins=True)
    prompt = (load.prefill_tokens, load.prefill_pairs)
    alone = pacing.seconds("device_only", rows, kv, prompt=prompt)[0]
    tokens = rows * alone / pacing.seconds("device_only", rows, kv)[0] if rows else 0.0
    length = situation.host_kv_tokens / situation.host_rows
    best: tuple[float, Strategy, int] = (tokens / alone, "device_only", 0)
    for strategy in THROUGH:
        if strategy not in strategies:
            continue
        for share in FIRST_SHARES if strategy == "asymmetric_pipelining" else (1.0,):
            seconds = pacing.seconds(strategy, rows, kv, riding, length, prompt, share)[0]
            best = max(best, ((tokens + riding) / seconds, strategy, max(1, round(riding * share))))
    return best[1], best[2]
