"""Which course is followed: what could be done is looked ahead on now and then, and the best of it is kept to."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..capacity import Capacity
from ..cost_model.component_times import Costs
from ..cost_model.prediction import Terms
from ..scheduler_state import Roster, Situation
from ..strategies import STRATEGIES
from .host_row_selection import ALONE, Course
from .rollout import Rollout, Start

STEPS = 30
"""Steps of a rollout without host rows and prompts that take half a millisecond: no plan waits longer for a course."""

PROGRESS = 0.5
"""Fraction of all output tokens to come, by which they change before a course is thought over again: what has passed
since was foreseen."""

MEANWHILE = 0.05
"""The same while the first courses were compared: what has passed since was not foreseen."""

ROUGHLY = 64
"""Requests that are followed at first, where there are more of them and several strategies: then those of which a
course is not clearly worse than the best are followed more closely."""

LITTLE = 0.005
"""The gain below which the present course is kept, and the difference below which the one that comes first among two
courses is taken: strategies that bind requests for longer stand later."""

DOUBT = 0.03
"""The gain where each request that was followed stands for several. Also the change of a factor of the cost model that
is worth a thought."""

CLEARLY = 0.06
"""By how much a course may end later than another before it is followed no further."""


class Thought:
    """Courses that are being compared from one situation on.

    Args:
        start: where they begin.
        courses: those that are to be followed, in this order.
        late: those that are known to be clearly later than another.

    Attributes:
        seconds: until all requests have ended, by course; infinity for one that is clearly later than another, and so
            was followed no further.
    """

    def __init__(self, start: Start, courses: Iterable[Course], late: Iterable[Course]) -> None:
        self.seconds: dict[Course, float] = dict.fromkeys(late, math.inf)
        self.is_exact = start.each == 1
        self._start = start
        self._open = list(courses)[::-1]
        self._rollout: Rollout | None = None

    def go_on(self) -> int:
        """Follow a course for a step; return what that takes, see `Rollout`."""
        if self._rollout is None:
            self._rollout = Rollout(self._start, self._open.pop())
        taken = self._rollout.go_on()
        late = self._rollout.now > (1 + CLEARLY) * min(self.seconds.values(), default=math.inf)
        if late or self._rollout.is_over:
            self.seconds = {**self.seconds, self._rollout.course: math.inf if late else self._rollout.now}
            self._rollout = None
        return taken

    @property
    def is_between(self) -> bool:
        """Whether no course has been followed in part."""
        return self._rollout is None

    @property
    def is_over(self) -> bool:
        """Whether all courses have been followed to their ends."""
        return self.is_between and not self._open


class Courses:
    """Keeps to a course and thinks it over as requests come and go.

    A thought is spread over decisions. What is best among the courses followed so far is taken as soon as device_only
    and what is being done are among them.

    Args:
        margin: gain over device_only below which nothing leaves the device.

    Attributes:
        present: the course that is kept to; None before the first is chosen.
        seconds: what the courses were predicted to take when they were last compared.
    """

    def __init__(self, *, margin: float) -> None:
        self.present: Course | None = None
        self.seconds: dict[Course, float] = {}
        self._margin = margin
        self._thought: Thought | None = None
        self._work = 0
        self._is_first = self._is_rough = self._again = False
        self._good: set[str] = set()
        self._factors: Terms | None = None

    @property
    def is_thinking(self) -> bool:
        """Whether courses are being compared, or may be again at once."""
        return self._thought is not None or self._again

    def is_due(self, situation: Situation, factors: Terms) -> bool:
        """Whether so much has changed since the last thought that another is worth it; not before that has ended."""
        if self._thought is not None:
            return False
        work = situation.remaining_tokens + situation.waiting_output
        if not self._is_rough:
            self._again = self._again and abs(work - self._work) > MEANWHILE * self._work
        if self._factors is None or self._again or abs(work - self._work) > PROGRESS * self._work:
            return True
        return any(abs(now - then) > DOUBT * then for now, then in zip(factors, self._factors, strict=True))

    def begin(
        self, situation: Situation, costs: Costs, capacity: Capacity, roster: Roster, courses: Iterable[Course]
    ) -> None:
        """Begin to compare device_only, the present course and others, those that are likely to be good first."""
        self._work = situation.remaining_tokens + situation.waiting_output
        self._factors = costs.factors
        first = [ALONE] if self.present in (None, ALONE) else [ALONE, self.present]
        others = [each for each in courses if each not in first]
        late = [each for each in others if each.strategy not in self._good] if self._again else []
        others = [each for each in others if each not in late]
        start = Start.of(costs, capacity, roster, most=ROUGHLY)
        several = len({course.strategy for course in others}) > 1
        self._is_rough = several and start.each > 1 and start.is_alike and not self._again
        if not self._is_rough:
            start = Start.of(costs, capacity, roster)
        self._is_first, self._again = self.present is None, False
        self._thought = Thought(start, [*first, *others], late)

    def settle(self, decisions: int, *, strategy: str) -> None:
        """Go on comparing, as far as in so many decisions, while a strategy is in force."""
        steps = STEPS * decisions
        while self._thought is not None and steps > 0:
            thought = self._thought
            steps -= thought.go_on()
            taken = self._is_first or not self._is_rough
            if taken and (thought.is_over or (thought.is_between and self._is_ready(thought, strategy))):
                self._take(thought.seconds, LITTLE if thought.is_exact else DOUBT, strategy)
            if thought.is_over:
                self._thought = None
                # Requests may have moved meanwhile, and not as in any course.
                self._again = self._is_first or self._is_rough
                self._good = {course.strategy for course in thought.seconds if thought.seconds[course] < math.inf}

    def forget(self) -> None:
        """Return to the device alone, as everything fits there."""
        self.present = self._thought = self._factors = None
        self._again = False
        if self.seconds:
            self.seconds = {}

    def _is_ready(self, thought: Thought, strategy: str) -> bool:
        """Whether what is being done is among the courses that have been followed."""
        if self.present is not None:
            return {ALONE, self.present} <= thought.seconds.keys()
        followed = {course.strategy for course in thought.seconds}
        return len(followed) > 1 and strategy in followed

    def _take(self, seconds: dict[Course, float], doubt: float, strategy: str) -> None:
        least = min(seconds.values())
        alike = [course for course in seconds if seconds[course] <= (1 + LITTLE) * least]
        best = min(alike, key=lambda course: STRATEGIES.index(course.strategy))
        present = self.present
        if present is None:
            # What rates led to has brought the requests to where they are.
            same = [course for course in seconds if course.strategy == strategy]
            present = min(same, key=lambda course: seconds[course], default=ALONE)
            doubt = self._margin if present == ALONE else doubt
        kept = seconds.get(present, math.inf) <= (1 + doubt) * seconds[best]
        self.present, self.seconds = present if kept else best, seconds
