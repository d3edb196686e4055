"""How long all requests would take to their ends under a course: a strategy and how many of them go to the host.

Rates say what pays while a load lasts. A finite batch comes in waves and ends with stragglers, and a few requests that
do not fit can cost a whole wave. So a course is followed in virtual time up to the last request's end (see `journey`),
with groups of like requests in place of each of them.
"""

from __future__ import annotations

import math

from .costs import Costs
from .journey import Course, Journey, Room, Start
from .pacing import Pacing
from .roster import Roster, grouped

PHASES = 32
"""Phases of a course that take less than half a millisecond."""


class Lookahead:
    """Follows courses from one situation on.

    Args:
        costs: times of the parts of iterations.
        roster: the requests.
        room: what bounds them.
    """

    def __init__(self, costs: Costs, roster: Roster, room: Room) -> None:
        self._start = Start(
            pacing=Pacing(costs),
            num_layers=costs.num_layers,
            moving_s=costs.migration(1),
            room=room,
            device=grouped(roster.device, 3),
            host=grouped(roster.host, 3),
            waiting=grouped(roster.waiting, 6),
        )

    def begin(self, course: Course) -> Journey:
        """Return a course to follow step by step."""
        return Journey(self._start, course)

    def seconds(self, course: Course, within: float = math.inf) -> float:
        """Return when the last request ends; infinity if that is later than `within`."""
        journey = self.begin(course)
        while not journey.is_over:
            journey.go_on(PHASES, within)
        return journey.now
