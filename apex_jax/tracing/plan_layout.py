"""Where the parts of a plan stand on a line of boundaries: what its text and its picture have in common.

Boundary b has the unit from b to b + 1: first the device's passes over its weights, side by side, then the attention of
layer b. These are places, not times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..scheduler.plan import Cohort, Plan

PASSES_SHARE = 0.62
"""Of a unit: what its passes take; the rest is attention's."""
MARGIN = 0.25
"""At either end: room for attention that comes from the iteration before, or goes on in the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A pass of the device over one boundary's weights.

    Attributes:
        boundary: 0 to L.
        begin, end: its place.
        device: device rows ride.
        cohort: the cohort that rides, if any.
        waits: it begins with a result of the host, for which the device waits if it has to.
    """

    boundary: int
    begin: float
    end: float
    device: bool
    cohort: Cohort | None
    waits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostJob:
    """Attention of one cohort in one layer on the host.

    Attributes:
        cohort: whose rows.
        layer: 0 to L - 1.
        begin, end: its place, from a pass of the cohort to its next one or the edge of the plan.
        reach: whether it lies within the iteration, comes from the one before, or goes on in the one after.
    """

    cohort: Cohort
    layer: int
    begin: float
    end: float
    reach: Literal["within", "before", "after"]


def passes(plan: Plan) -> tuple[Pass, ...]:
    """Return a plan's passes in the order in which the device runs them."""
    cohorts = {cohort.id: cohort for cohort in plan.cohorts}
    count = [0] * (plan.num_layers + 1)
    for stage in plan.stages:
        count[stage.boundary] += 1
    width = PASSES_SHARE / max(count)
    found: list[Pass] = []
    for stage in plan.stages:
        begins_unit = not found or found[-1].boundary != stage.boundary
        begin = float(stage.boundary) if begins_unit else found[-1].end
        cohort = None if stage.cohort is None else cohorts[stage.cohort]
        waits = cohort is not None and stage.boundary > 0
        found.append(
            Pass(
                boundary=stage.boundary, begin=begin, end=begin + width, device=stage.device, cohort=cohort, waits=waits
            )
        )
    return tuple(found)


def host_jobs(plan: Plan) -> Iterator[HostJob]:
    """Yield the host's work for every cohort of a plan, from left to right."""
    found = passes(plan)
    for cohort in plan.cohorts:
        own = [one for one in found if one.cohort is not None and one.cohort.id == cohort.id]
        if cohort.first > 0:
            yield HostJob(cohort=cohort, layer=cohort.first - 1, begin=-MARGIN, end=own[0].begin, reach="before")
        for earlier, later in pairwise(own):
            yield HostJob(cohort=cohort, layer=earlier.boundary, begin=earlier.end, end=later.begin, reach="within")
        if cohort.last < plan.num_layers:
            yield HostJob(
                cohort=cohort, layer=cohort.last, begin=own[-1].end, end=right_edge(plan.num_layers), reach="after"
            )


def right_edge(num_layers: int) -> float:
    """Return where the line of boundaries ends."""
    return num_layers + PASSES_SHARE + MARGIN


def describe(plan: Plan) -> str:
    """Return a plan in words, a line for the device rows, for each cohort and for each kind of move."""
    last = plan.num_layers
    count = len(plan.stages)
    again = count - len({stage.boundary for stage in plan.stages})
    over = f", {again} of them over weights that were read just before" if again else ""
    lines = [f"{plan.strategy}, plan {plan.number}: {last} layers, {counted(count, 'pass', 'es')}{over}"]
    lines.append(device_rows(plan))
    beside = {stage.cohort for stage in plan.stages if stage.device}
    lines += [_ride(cohort, last, alone=plan.has_device_rows and cohort.id not in beside) for cohort in plan.cohorts]
    lines += moves(plan)
    return "\n".join(lines)


def device_rows(plan: Plan) -> str:
    """Return what rides of the device's own, in a line."""
    if not plan.has_device_rows:
        return "device rows: none"
    parts = [counted(len(plan.decode), "row")] if plan.decode else []
    if plan.prefill:
        parts.append(counted(plan.prefill_tokens, "prompt token"))
    return f"device rows: {' and '.join(parts)} ride 0 to {plan.num_layers}"


def moves(plan: Plan) -> list[str]:
    """Return a line for each kind of move between device and host that a plan has."""
    kinds = (("land on the device first", plan.landings), ("leave for the host first", plan.evictions))
    kinds += (("begin to return beside it", plan.fetches),)
    return [f"requests that {what}: {', '.join(str(m.request_id) for m in some)}" for what, some in kinds if some]


def num_rows(cohort: Cohort) -> int:
    """Return how many requests a cohort still has."""
    return sum(row is not None for row in cohort.rows)


def _ride(cohort: Cohort, last: int, *, alone: bool) -> str:
    with_what = "their last tokens"
    if cohort.first > 0:
        with_what = f"layer {cohort.first - 1}, begun an iteration ago, for which the device waits if it is late"
    parts = [f"cohort {cohort.id}: {counted(num_rows(cohort), 'row')} board at {cohort.first} with {with_what}"]
    if alone:
        parts.append("have passes of their own")
    if cohort.first < cohort.last:
        waits = f"the device waits for the host at {cohort.first + 1} to {cohort.last}"
        parts.append(f"ride to {cohort.last}, where they get tokens; {waits}" if cohort.last == last else waits)
    if cohort.last < last:
        parts.append(f"are parked after {cohort.last} while the host computes layer {cohort.last}")
    elif cohort.first == cohort.last:
        parts.append("get tokens there")
    return ", ".join(parts)


def counted(number: int, noun: str, ending: str = "s") -> str:
    """Return `1 row`, `2 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else ending}"
