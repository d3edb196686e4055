"""How long all requests would take to their ends under a course: a strategy and how many of them go to the host.

Rates say what pays while a load lasts. A finite batch comes in waves and ends with stragglers, and a few requests that
do not fit can cost a whole wave. So a course is followed in virtual time up to the last request's end: request by
request (see `rehearsal`), for which of a few long ones begins last is likely to decide, and with groups of like
requests in place of each of them where there are many (see `journey`).
"""

from __future__ import annotations

import math
from functools import cached_property

from ..cost_model.component_times import Costs
from ..roster import MOST, MOST_WAITING, Roster, grouped
from .journey import Course, Journey, Room, Start
from .pacing import Pacing
from .rollout import Rehearsal

PHASES = 24
"""Phases of a course that take less than half a millisecond."""

SINGLE = 512
"""Requests up to which each is followed by itself."""


class Lookahead:
    """Follows courses from one situation on.

    Args:
        costs: times of the parts of iterations.
        roster: the requests.
        room: what bounds them.
        single: requests up to which each is followed by itself.

    Attributes:
        is_single: whether each request is followed by itself, and not in a group of like ones.
    """

    def __init__(self, costs: Costs, roster: Roster, room: Room, *, single: int = SINGLE) -> None:
        self.is_single = roster.requests <= single
        self._roster = roster
        self._room = room
        self._pacing = Pacing(costs)
        self._num_layers = costs.num_layers
        self._moving_s = costs.migration(1)

    def begin(self, course: Course) -> Journey | Rehearsal:
        """Return a course to follow step by step."""
        if self.is_single:
            return Rehearsal(self._pacing, self._num_layers, self._moving_s, self._room, self._roster, course)
        return Journey(self._start, course)

    @cached_property
    def _start(self) -> Start:
        return Start(
            pacing=self._pacing,
            num_layers=self._num_layers,
            moving_s=self._moving_s,
            room=self._room,
            device=grouped(self._roster.device, MOST),
            host=grouped(self._roster.host, MOST),
            waiting=grouped(self._roster.waiting, MOST_WAITING),
        )

    def seconds(self, course: Course, within: float = math.inf) -> float:
        """Return when the last request ends; infinity if that is later than `within`."""
        journey = self.begin(course)
        while not journey.is_over:
            journey.go_on(PHASES, within)
        return journey.now
