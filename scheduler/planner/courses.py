"""Which course is followed: what could be done is looked ahead on now and then, and the best of it is kept to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..cost_model.component_times import Costs
from ..cost_model.prediction import Terms
from ..policy import Situation
from ..strategies import STRATEGIES
from .journey import ALONE, Course, Journey, Room
from .lookahead import SINGLE, Lookahead
from .rollout import Rehearsal

PROGRESS = 0.2
"""Fraction of all output tokens to come, by which they change before a course is thought over again."""

FORESEEN = 0.5
"""The same where every request was followed by itself: what has passed since was foreseen."""

ALIKE = 0.01
"""Difference below which the one that comes first among two courses is taken: strategies that bind requests for longer
stand later."""

DOUBT = 0.03
"""Gain over the present course below which it is kept: what looking ahead with groups is often off by. Also the change
of a factor of the cost model that is worth a thought."""

LITTLE = 0.005
"""The gain below which the present course is kept where every request was followed by itself."""

SOON = 48
"""Decisions over which a thought may be spread: what it is about changes meanwhile."""

PHASES_A_REQUEST = 18
"""Phases that a thought takes for each request that is followed by itself, in all courses together."""


@dataclass(slots=True)
class Thought:
    """Courses that are being compared from one situation on.

    Attributes:
        look: follows them.
        open: those that are still to be followed, the next one last.
        journey: the one that is being followed.
        seconds: until all requests have ended, by course; infinity for one that is clearly later than another.
    """

    look: Lookahead
    open: list[Course]
    journey: Journey | Rehearsal | None = None
    seconds: dict[Course, float] = field(default_factory=dict)

    def go_on(self, phases: int) -> int:
        """Follow courses for so many phases at most; return how many are left."""
        if self.journey is None:
            self.journey = self.look.begin(self.open.pop())
        within = (1 + 2 * DOUBT) * min(self.seconds.values(), default=math.inf)
        phases = self.journey.go_on(phases, within)
        if self.journey.is_over:
            self.seconds[self.journey.course] = self.journey.now
            self.journey = None
        return phases

    @property
    def is_over(self) -> bool:
        """Whether all courses have been followed to their ends."""
        return self.journey is None and not self.open


class Courses:
    """Keeps to a course and thinks it over as requests come and go.

    Args:
        margin: gain over device_only below which nothing leaves the device.
        phases: of courses that are followed in one decision at most.

    Attributes:
        present: the course that is kept to; None before the first is chosen.
        seconds: what the courses were predicted to take when they were last compared.
    """

    def __init__(self, *, margin: float, phases: int) -> None:
        self.present: Course | None = None
        self.seconds: dict[Course, float] = {}
        self._margin = margin
        self._phases = phases
        self._thought: Thought | None = None
        self._work = 0
        self._progress = PROGRESS
        self._factors: Terms | None = None

    def is_due(self, situation: Situation, factors: Terms) -> bool:
        """Whether so much has changed since the last thought that another is worth it; not before that has ended."""
        if self._thought is not None:
            return False
        work = situation.remaining_tokens + situation.waiting_output
        if self._factors is None or abs(work - self._work) > self._progress * self._work:
            return True
        return any(abs(now - then) > DOUBT * then for now, then in zip(factors, self._factors, strict=True))

    def begin(self, situation: Situation, costs: Costs, room: Room, courses: Iterable[Course]) -> None:
        """Begin to compare device_only, the present course and others."""
        assert situation.roster is not None
        self._work = situation.remaining_tokens + situation.waiting_output
        self._factors = costs.factors
        single = min(SINGLE, SOON * self._phases // PHASES_A_REQUEST)
        look = Lookahead(costs, situation.roster(), room, single=single)
        self._progress = FORESEEN if look.is_single else PROGRESS
        others = [each for each in courses if each != self.present and each != ALONE]
        first = [ALONE] if self.present in (None, ALONE) else [ALONE, self.present]
        self._thought = Thought(look, [*others[::-1], *first])

    def settle(self, decisions: int) -> None:
        """Go on comparing, as far as in so many decisions, and take the best course once all have been followed."""
        thought, phases = self._thought, self._phases * decisions
        while thought is not None and phases:
            phases = thought.go_on(phases)
            if thought.is_over:
                self._take(thought.seconds, LITTLE if thought.look.is_single else DOUBT)
                self._thought = thought = None

    def forget(self) -> None:
        """Return to the device alone, as everything fits there."""
        self.present, self.seconds, self._thought, self._factors = None, {}, None, None

    def _take(self, seconds: dict[Course, float], doubt: float) -> None:
        least = min(seconds.values())
        alike = [course for course in seconds if seconds[course] <= (1 + min(ALIKE, doubt)) * least]
        best = min(alike, key=lambda course: STRATEGIES.index(course.strategy))
        present, doubt = (ALONE, self._margin) if self.present is None else (self.present, doubt)
        kept = seconds.get(present, math.inf) <= (1 + doubt) * seconds[best]
        self.present, self.seconds = present if kept else best, seconds
