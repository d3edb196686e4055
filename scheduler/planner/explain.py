"""The planner's last decision on one screen: what each strategy was predicted to make, what was chosen and why, and how
the last predictions compared with what happened."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from ..cost_model.correction import Measured
from ..cost_model.cost_model import CostModel
from ..cost_model.prediction import Prediction
from ..scheduler_state import Situation
from ..strategies import DEVICE_ONLY
from .candidates import Candidate
from .forecast import RARE
from .host_row_selection import Course
from .paper_rule import PaperRule
from .planner import Choice, Planner
from .reasons import milliseconds

SHOWN = 5
"""Iterations whose prediction is printed beside what they took."""

EARLIER = 2
"""Decisions before the last one that are printed."""

WIDTH = 120
"""Columns of a screen."""


def explain(planner: Planner) -> str:
    """Return the last decision and what led to it, as text of one screen."""
    choice = planner.latest()
    if choice is None:
        return "No decision has been made yet."
    lines = [*_machine(planner.model), "", _requests(choice.situation)]
    if (limit := planner.options.max_time_per_token) is not None:
        lines.append(f"limit       {milliseconds(limit)} ms a token")
    if choice.prompts.chance >= RARE:
        lines.append(
            f"prompts     {choice.prompts.tokens:,.0f} tokens in {choice.prompts.chance:.0%} of the iterations"
        )
    lines.append("")
    rows = choice.situation.host_rows
    title = f"with the {rows} host requests that exist" if rows else "no request is on the host"
    lines += _table(title, choice.candidates)
    if choice.target:
        most = max(candidate.riding for candidate in choice.target.values())
        lines += ["", *_table(f"with as many on the host as could come to exist, {most} at most", choice.target)]
    if choice.courses:
        lines += ["", *_courses(choice.courses)]
    lines += ["", *_rule(choice.rule), "", *_decision(choice)]
    for old in list(planner.choices)[-1 - EARLIER : -1]:
        lines += _wrapped("before", f"{old.decision.strategy} ({old.reason})")
    return "\n".join([*lines, "", *_record(planner.model.recent)])


def _machine(model: CostModel) -> Iterator[str]:
    key, factors = model.profile.key, model.factors
    source = key.software if model.profile.described else "measured"
    yield f"machine     {key.device}, host {key.host}; {source}"
    yield f"model       {key.model}; {key.dtypes}"
    changed = [
        f"{name.replace('_', ' ')} x {factor:.2f}"
        for name, factor in factors._asdict().items()
        if abs(factor - 1) >= 0.005
    ]
    yield f"corrections {', '.join(changed) or 'none'}"


def _requests(situation: Situation) -> str:
    def side(rows: int, tokens: int, free: int) -> str:
        return f"{rows:,} with {tokens:,} tokens of KV, room for {free:,} more"

    device = side(situation.device_rows, situation.device_kv_tokens, situation.free_device_tokens)
    host = side(situation.host_rows, situation.host_kv_tokens, situation.free_host_tokens)
    prompts = f"; {situation.prefill_tokens:,} prompt tokens in this iteration" if situation.prefill_tokens else ""
    return f"device      {device}\nhost        {host}\nwaiting     {situation.waiting:,}{prompts}"


def _table(title: str, candidates: Mapping[str, Candidate]) -> Iterator[str]:
    yield title
    yield (
        f"  {'':21} {'cohorts':>11} {'iteration':>9} {'device':>8} {'host':>8} {'device':>8} {'tokens':>9} "
        f"{'compared':>9} {'ms a token on':>17}"
    )
    yield (
        f"  {'':21} {'':>11} {'ms':>9} {'busy ms':>8} {'busy ms':>8} {'waits ms':>8} {'a second':>9} {'':>9} "
        f"{'device':>8} {'host':>8}"
    )
    for strategy, each in candidates.items():
        host_token = "none" if math.isinf(each.host_token_s) else milliseconds(each.host_token_s)
        yield (
            f"  {strategy:21} {_cohorts(each.under_way):>11} {milliseconds(each.iteration_s):>9} "
            f"{milliseconds(each.device_busy_s):>8} {milliseconds(each.host_busy_s):>8} "
            f"{milliseconds(each.device_wait_s):>8} {each.tokens_per_s:9,.1f} "
            f"{each.rate:9,.1f} {milliseconds(each.device_token_s):>8} {host_token:>8}{' *' if each.beyond else ''}"
        )
    if any(abs(each.rate - each.tokens_per_s) > 0.005 * each.tokens_per_s for each in candidates.values()):
        yield "  compared: time for prompts counts as the tokens that the device would make in it, and host requests'"
        yield "  tokens less the closer the last request's end"
    if beyond := dict.fromkeys(text for each in candidates.values() for text in each.beyond):
        yield from wrap(
            f"* beyond what the profile covers, where its curves go on as over their upper halves: {'; '.join(beyond)}",
            width=WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )


def _cohorts(rows: Sequence[int]) -> str:
    """Return how many are under way, and their sizes."""
    if not rows:
        return "-"
    sizes = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,}-{max(rows):,}"
    return f"{len(rows)} x {sizes}"


def _courses(courses: Mapping[Course, float]) -> Iterator[str]:
    yield "until the last request ends, if this is kept to"
    for course, seconds in sorted(courses.items(), key=lambda item: item[1]):
        text = f"{seconds:9,.1f} s" if math.isfinite(seconds) else f"{'later':>11}"
        yield f"  {course.strategy:21} {text}   {_course(course)}"


def _course(course: Course) -> str:
    if course.strategy == DEVICE_ONLY.name:
        return "none on the host"
    turns = f", {course.riding:,} of them at once" if course.riding < course.most else ""
    rests = ", at rest where they do not make up for their time" if course.rests else ""
    return f"up to {course.most:,} requests on the host{turns}{rests}"


def _rule(rule: PaperRule | None) -> Iterator[str]:
    if rule is None:
        yield "paper's rule (eq. 6): says nothing without decode attention on both sides"
        return
    linear, attention = milliseconds(rule.linear_s), milliseconds(rule.attention_s)
    yield "paper's rule (eq. 6): pipelining beats device_only in decode if N_G/N_C < 2 T_lin/T_att + 3 + T_att/T_lin"
    decode = rule.decode_bound
    yield (
        f"  {rule.rate_ratio:.2f} < 2 * {linear}/{attention} + 3 + {attention}/{linear} = {decode:.2f}: "
        f"{'holds' if rule.rate_ratio < decode else 'does not hold'}"
    )
    if rule.prompt_s > 0:
        prompt = milliseconds(rule.prompt_s)
        yield (
            f"  with prompts of T_pre = {prompt} ms, (2 T_lin + T_att + T_pre) (T_lin + T_att + T_pre) / "
            f"(T_lin T_att) = {rule.bound:.2f}: {'holds' if rule.holds else 'does not hold'}"
        )


def _decision(choice: Choice) -> Iterator[str]:
    decision = choice.decision
    yield from _wrapped("chosen", f"{decision.strategy}: {choice.reason}")
    yield f"            up to {decision.max_host_requests:,} requests may live on the host"


def _wrapped(title: str, text: str) -> list[str]:
    return wrap(text, width=WIDTH, initial_indent=f"{title:12}", subsequent_indent=" " * 12)


def _record(recent: Sequence[tuple[Prediction, Measured]]) -> Iterator[str]:
    if not recent:
        yield "no iteration has been measured yet"
        return
    errors = sorted(abs(measured.iteration_s / prediction.iteration_s - 1) for prediction, measured in recent)
    worst = errors[math.ceil(0.9 * len(errors)) - 1]
    yield (
        f"the last {len(recent)} iterations: measured differs from predicted by {statistics.median(errors):.1%} "
        f"in the median, {worst:.1%} at the 90th percentile"
    )
    for prediction, measured in list(recent)[-SHOWN:]:
        busy = "" if measured.host_busy_s is None else f", {_host(measured.host_busy_s)}"
        yield (
            f"  {prediction.strategy:21} predicted {milliseconds(prediction.iteration_s):>7} ms, "
            f"{_host(prediction.host_busy_s)}; measured {milliseconds(measured.iteration_s):>7} ms{busy}"
        )


def _host(busy_s: float) -> str:
    return f"host busy {milliseconds(busy_s)} ms" if busy_s else "host idle"
