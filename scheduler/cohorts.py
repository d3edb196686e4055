"""The host rows that are under way: which cohorts there are, and at which boundary each boards next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .plan import Cohort, DecodeRow
from .plan_builder import Draft
from .request import Request

ROUNDING = 1e-6
"""Plans by which sums of times of departure may be off."""


class Departure(NamedTuple):
    """A cohort that may be formed for a plan.

    Attributes:
        rows: at most.
        through: it rides all boundaries in this plan, not boundary 0 alone.
        hurried: its requests are those that rode in the plan before, as far as they rest, and it comes before the
            cohorts under way: where both ride, it shares the device rows' pass.
    """

    rows: int
    through: bool
    hurried: bool = False


@dataclass(kw_only=True, eq=False)
class _UnderWay:
    """A cohort that has departed: its requests and their rows in the same places, None where one has left."""

    id: int
    requests: list[Request | None]
    rows: list[DecodeRow | None]
    position: int = 0


class Cohorts:
    """Cohorts of host requests between the first and the last boundary of a token.

    Args:
        num_layers: L; a cohort rides the boundaries 0 to L once each.
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._under_way: list[_UnderWay] = []
        self._next_id = 0
        self._next_lane = 0
        self._rode = False
        self._due = self._departed = 0.0

    @property
    def num_under_way(self) -> int:
        return len(self._under_way)

    def ride(self, draft: Draft, *, through: bool) -> bool:
        """Let every cohort under way ride, one boundary or `through` to the end; returns whether there are any."""
        for cohort in self._under_way:
            self._ride(cohort, draft, through=through)
        found = self._rode = bool(self._under_way)
        self._under_way = [cohort for cohort in self._under_way if cohort.position <= self._num_layers]
        return found

    def due(self, lanes: Sequence[int], plan: int) -> tuple[int, ...]:
        """Return the lane whose cohort may depart with this plan, as a tuple that is empty if none may.

        Departures are spread evenly over the L + 1 iterations of a token, so that cohorts ride different boundaries:
        each in the first plan that is not before its time, which need not be a whole number. Where nothing is under way
        the first one need not wait.
        """
        if not lanes:
            return ()
        boundaries = self._num_layers + 1
        self._due = self._departed + boundaries / min(len(lanes), boundaries)
        if (self._rode or self._under_way) and plan < self._due - ROUNDING:
            return ()
        return (lanes[self._next_lane % len(lanes)],)

    def depart(
        self, requests: Sequence[Request], draft: Draft, *, plan: int, through: bool, hurried: bool = False
    ) -> None:
        """Form a cohort of resting requests; see `Departure`."""
        rows: list[DecodeRow | None] = []
        for request in requests:
            assert request.slot is not None
            rows.append(DecodeRow(request_id=request.id, slot=request.slot, length=request.length, step=request.steps))
            request.cohort = self._next_id
            request.last_turn = plan
        cohort = _UnderWay(id=self._next_id, requests=list(requests), rows=rows)
        self._next_id += 1
        self._ride(cohort, draft, through=through)
        if hurried:
            draft.cohorts.insert(0, draft.cohorts.pop())
        else:
            self._next_lane += 1
            self._departed = self._due if plan - 1 + ROUNDING < self._due <= plan + ROUNDING else plan
        if cohort.position <= self._num_layers:
            self._under_way.append(cohort)

    def leave(self, request: Request) -> None:
        """Take a request out of its cohort, whose rows keep their places."""
        if request.cohort is not None:
            cohort = next(cohort for cohort in self._under_way if cohort.id == request.cohort)
            place = cohort.requests.index(request)
            cohort.requests[place] = cohort.rows[place] = None
            request.cohort = None

    def clear(self) -> None:
        """Forget all cohorts, when no request is left that could be in one."""
        self._under_way.clear()
        self._rode = False

    def _ride(self, cohort: _UnderWay, draft: Draft, *, through: bool) -> None:
        last = self._num_layers if through else cohort.position
        draft.cohorts.append(Cohort(id=cohort.id, rows=tuple(cohort.rows), first=cohort.position, last=last))
        cohort.position = last + 1
        if last == self._num_layers:
            for request in cohort.requests:
                if request is not None:
                    request.computed = request.length
                    request.in_flight += 1
                    request.cohort = None


def even(rows: int, count: int) -> tuple[int, ...]:
    """Spread rows evenly over at most `count` cohorts, larger ones first."""
    least, more = divmod(rows, count)
    return tuple(size for size in (least + 1,) * more + (least,) * (count - more) if size)
