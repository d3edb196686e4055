"""A course in virtual time up to the last request's end, request by request: the rules by which requests are served."""

from __future__ import annotations

import math

from ..capacity import Capacity
from ..roster import Roster
from ..simulation.request_pool import SimRequest
from ..simulation.virtual_engine import VirtualEngine
from .forecast import prompts_begin
from .host_row_selection import riding
from .journey import Course, Room
from .pacing import Pacing

MORE = 2
"""A step here takes as long as that many phases of a `Journey`."""


class Rehearsal:
    """One course in virtual time.

    Args:
        pacing: what iterations take.
        num_layers: L.
        moving_s: seconds for moving a token's KV between the sides.
        room: what bounds the requests.
        roster: the requests.
        course: what is done.

    Attributes:
        now: seconds since the start; infinity once that is later than somebody wants to know, or nothing moves.
    """

    def __init__(
        self, pacing: Pacing, num_layers: int, moving_s: float, room: Room, roster: Roster, course: Course
    ) -> None:
        self.now = 0.0
        self.course = course
        self._pacing = pacing
        self._moving_s = moving_s
        # Every request fits alone, or it would not have been taken.
        everybody = (*roster.device, *roster.host, *roster.waiting)
        longest = max((context + left - 1 for context, left in everybody), default=1)
        capacity = Capacity(
            device_kv_tokens=max(room.device_tokens, -(-longest // room.page_size) * room.page_size),
            host_kv_tokens=room.host_tokens,
            page_size=room.page_size,
            max_prefill_tokens=room.prompt_tokens,
            max_num_seqs=room.device_requests,
            max_host_seqs=course.most,
        )
        self._engine = VirtualEngine(capacity, num_layers)
        self._engine.scheduler.hold(*_requests(roster))

    @property
    def is_over(self) -> bool:
        """Whether the last request has ended, or does so too late."""
        return self.now == math.inf or self._engine.scheduler.is_empty

    def go_on(self, phases: int, within: float) -> int:
        """Follow the course for so many phases at most, or up to its end; return how many are left."""
        while phases > 0 and not self.is_over:
            self._pass()
            if self.now > within:
                self.now = math.inf
            phases -= MORE
        return max(0, phases)

    def _pass(self) -> None:
        engine, scheduler = self._engine, self._engine.scheduler
        situation = engine.situation()
        begins = prompts_begin(situation, self.course.most, scheduler.capacity.page_size)
        step = engine.begin(riding(self.course, situation, self._pacing, begins=begins))
        turn, load = step.turn, step.load
        rows = sum(turn.lanes)
        seconds, busy = self._pacing.seconds(
            turn.strategy,
            load.device_rows,
            load.device_kv_tokens,
            rows,
            step.row_tokens,
            (load.prefill_tokens, load.prefill_pairs),
            share=turn.lanes[0] / rows if rows else 0.0,
            cohorts=len(turn.lanes),
        )
        if scheduler.moved_tokens:
            seconds = max(seconds, busy + self._moving_s * scheduler.moved_tokens)
        engine.end(step, seconds, step.iterations)
        moves = load.device_rows or load.prefill_tokens or turn.pace or scheduler.moved_tokens
        self.now = engine.now if moves else math.inf


def _requests(roster: Roster) -> list[list[SimRequest]]:
    """Return the requests of each side."""
    arrivals = iter(roster.arrivals or range(roster.requests))
    return [
        [SimRequest(id=next(arrivals), arrival_s=0.0, prompt=context, output=left) for context, left in lengths]
        for lengths in (roster.device, roster.host, roster.waiting)
    ]
