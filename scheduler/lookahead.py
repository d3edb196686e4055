"""How long all requests would take to their ends under a course: a strategy and how many of them go to the host.

Rates say what pays while a load lasts. A finite batch comes in waves and ends with stragglers, and a few requests that
do not fit can cost a whole wave. So a course is followed in virtual time up to the last request's end: request by
request (see `rehearsal`), for which of a few long ones begins last is likely to decide, and with groups of like
requests in place of each of them where there are many (see `journey`).
"""

from __future__ import annotations

import math

from .costs import Costs
from .journey import Course, Journey, Room, Start
from .pacing import Pacing
from .rehearsal import Rehearsal
from .roster import MOST, MOST_WAITING, Roster, grouped

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
        self._roster = roster
        self.is_single = roster.requests <= single
        self._start = Start(
            pacing=Pacing(costs),
            num_layers=costs.num_layers,
            moving_s=costs.migration(1),
            room=room,
            device=grouped(roster.device, MOST),
            host=grouped(roster.host, MOST),
            waiting=grouped(roster.waiting, MOST_WAITING),
        )

    def begin(self, course: Course) -> Journey | Rehearsal:
        """Return a course to follow step by step."""
        if self.is_single:
            start = self._start
            return Rehearsal(start.pacing, start.num_layers, start.moving_s, start.room, self._roster, course)
        return Journey(self._start, course)

    def seconds(self, course: Course, within: float = math.inf) -> float:
        """Return when the last request ends; infinity if that is later than `within`."""
        journey = self.begin(course)
        while not journey.is_over:
            journey.go_on(PHASES, within)
        return journey.now
