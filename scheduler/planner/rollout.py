"""How long all requests would take to their ends under a course, by the rules by which requests are served.

Rates say what pays while a load lasts. A finite batch comes in waves and ends with stragglers, and a few requests that
do not fit can cost a whole wave: which of a few long ones begins last is likely to decide. So a course is followed in
virtual time up to the last request's end. Of many requests some are followed, each of which stands for several on a
machine that is as much smaller.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from ..capacity import Capacity
from ..cost_model.component_times import Costs
from ..cost_model.prediction import Load
from ..policy import Decision
from ..scheduler_state import Roster, Situation
from ..simulation.request_pool import SimRequest
from ..simulation.virtual_engine import VirtualEngine
from ..strategies import DEVICE_ONLY, named
from ..strategies.steady import DeviceSide
from .forecast import prompts_begin
from .host_row_selection import Course, all_riding, riding

FOLLOWED = 512
"""Requests that are followed at most."""

HOST_ROWS = PROMPTS = 2
"""What a step takes more in which host rows ride, or prompts are computed, in times of one without both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where courses begin.

    Attributes:
        costs: times of the parts of iterations.
        capacity: what bounds the requests that are followed.
        roster: these requests.
        each: requests that one of them stands for.
        is_alike: the device's memory is divided by that too; it never holds less than a request.
    """

    costs: Costs
    capacity: Capacity
    roster: Roster
    each: float = 1.0
    is_alike: bool = True

    @classmethod
    def of(cls, costs: Costs, capacity: Capacity, roster: Roster, *, most: int = FOLLOWED) -> Start:
        """Return the start from requests with a capacity, `most` of which are followed."""
        each = max(1.0, roster.requests / most)
        if each > 1:
            roster = _some(roster, each)
        # Every request fits alone, or it would not have been taken.
        everybody = (*roster.device, *roster.host, *roster.waiting)
        longest = max((context + left - 1 for context, left in everybody), default=1)
        least, part = capacity.prompt_pages(longest) * capacity.page_size, int(capacity.device_kv_tokens / each)
        return cls(
            costs=costs,
            capacity=replace(
                capacity,
                device_kv_tokens=max(part, least),
                host_kv_tokens=int(capacity.host_kv_tokens / each),
                max_num_seqs=math.ceil(capacity.max_num_seqs / each),
                max_host_seqs=math.ceil(capacity.max_host_seqs / each),
            ),
            roster=roster,
            each=each,
            is_alike=part >= least,
        )

    def seconds(self, course: Course) -> float:
        """Return when the last request ends; infinity if nothing moves."""
        rollout = Rollout(self, course)
        while not rollout.is_over:
            rollout.go_on()
        return rollout.now


class Rollout:
    """One course in virtual time.

    Args:
        start: where it begins.
        course: what is done.

    Attributes:
        now: seconds since the start; infinity where nothing moves any more.
    """

    def __init__(self, start: Start, course: Course) -> None:
        self.now = 0.0
        self.course = course
        self._start = start
        self._engine = VirtualEngine(start.capacity, start.costs.num_layers)
        self._engine.scheduler.hold(*_requests(start.roster))
        self._most = math.ceil(course.most / start.each)
        self._idle = Decision(strategy=DEVICE_ONLY.name, max_host_requests=self._most)
        self._through = named(course.strategy).through
        self._by_rows: dict[int, Decision] = {}

    @property
    def is_over(self) -> bool:
        """Whether the last request has ended, or none ever will."""
        return self.now == math.inf or self._engine.scheduler.is_empty

    def go_on(self) -> int:
        """Follow the course up to the next event; return what that takes, in times of a step without host rows and
        prompts."""
        scheduler, start, each = self._engine.scheduler, self._start, self._start.each
        step = self._engine.begin(self._decision())
        turn, load, count = step.turn, step.load, step.iterations
        lanes = turn.lanes
        if each > 1:
            iterations = math.ceil(load.prefill_tokens * each / start.capacity.max_prefill_tokens) or 1
            load, lanes = _spread(load, each, iterations), tuple(round(rows * each) for rows in lanes)
            count = max(count, iterations)
        timing = DeviceSide(start.costs, load).timing(turn.strategy, lanes, step.row_tokens)
        seconds = timing.iteration_s
        if scheduler.moved_tokens:
            seconds = max(seconds, timing.host_busy_s + start.costs.migration(scheduler.moved_tokens * each / count))
        self._engine.end(step, seconds, count)
        moves = load.device_rows or load.prefill_tokens or turn.pace or scheduler.moved_tokens
        self.now = self._engine.now if moves else math.inf
        return 1 + (HOST_ROWS if lanes else 0) + (PROMPTS if load.prefill_tokens else 0)

    def _decision(self) -> Decision:
        course, scheduler = self.course, self._engine.scheduler
        rows = scheduler.host.rows
        if not min(rows, course.riding):
            return self._idle
        if self._through and (course.rests or scheduler.waiting or scheduler.prefilling):
            return self._chosen()
        decision = self._by_rows.get(rows)
        if decision is None:
            most = min(round(rows * self._start.each), course.riding)
            decision = self._divided(all_riding(course, most, self._start.costs.num_layers))
            self._by_rows[rows] = decision
        return decision

    def _chosen(self) -> Decision:
        """Return how many host rows ride in iterations that may be with them or without."""
        start, situation = self._start, self._engine.situation()
        begins = prompts_begin(situation, self._most, start.capacity.page_size)
        if start.each > 1:
            situation = _multiplied(situation, start.each)
        return self._divided(riding(self.course, situation, start.costs, begins=begins))

    def _divided(self, decision: Decision) -> Decision:
        """Return a decision for all requests for those that are followed."""
        each = self._start.each
        if each == 1:
            return decision
        lanes = tuple(max(1, round(rows / each)) for rows in decision.lanes)
        return replace(decision, lanes=lanes, max_host_requests=self._most)


def _multiplied(situation: Situation, each: float) -> Situation:
    """Return what of a situation decides how host rows ride, where each request stands for several."""
    return replace(
        situation,
        device_rows=round(situation.device_rows * each),
        device_kv_tokens=round(situation.device_kv_tokens * each),
        host_rows=round(situation.host_rows * each),
        host_kv_tokens=round(situation.host_kv_tokens * each),
    )


def _spread(load: Load, each: float, iterations: int) -> Load:
    """Return the load of one of several iterations in which prompts are computed, where each request stands for
    several."""
    return Load(
        device_rows=round(load.device_rows * each),
        device_kv_tokens=load.device_kv_tokens * each,
        prefill_tokens=round(load.prefill_tokens * each / iterations),
        prefill_pairs=load.prefill_pairs * each / iterations,
        prompt_samples=round(load.prompt_samples * each / iterations),
    )


def _some(roster: Roster, each: float) -> Roster:
    """Return every so many-th request of each side, and the one with most left."""
    sides, chosen, numbers = (roster.device, roster.host, roster.waiting), [], []
    arrivals, before = roster.arrivals or range(roster.requests), 0
    for side in sides:
        parts = math.ceil(len(side) / each)
        cuts = [at * len(side) // parts for at in range(parts + 1)] if side else []
        longest = max(range(len(side)), key=lambda at: side[at][1], default=0)
        places = [longest if a <= longest < b else (a + b) // 2 for a, b in itertools.pairwise(cuts)]
        chosen.append([side[at] for at in places])
        numbers += [arrivals[before + at] for at in places]
        before += len(side)
    device, host, waiting = chosen
    return Roster(device, host, waiting, numbers)


def _requests(roster: Roster) -> list[list[SimRequest]]:
    """Return the requests of each side."""
    arrivals = iter(roster.arrivals or range(roster.requests))
    return [
        [SimRequest(id=next(arrivals), arrival_s=0.0, prompt=context, output=left) for context, left in lengths]
        for lengths in (roster.device, roster.host, roster.waiting)
    ]
