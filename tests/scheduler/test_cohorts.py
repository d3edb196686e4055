"""Cohorts by themselves: which boundary comes next, when the next one departs, who is left."""

import pytest

from apex_jax.scheduler import FixedPolicy, Request, Scheduler
from apex_jax.scheduler.cohorts import Cohorts
from apex_jax.scheduler.plan_builder import Draft

from .machines import capacity


def resting(*numbers):
    found = []
    for number in numbers:
        request = Request(id=number, prompt=(1, 2, 3), max_tokens=9, slot=number, side="host", computed=3)
        request.output.append(7)
        found.append(request)
    return found


def ride(cohorts, *, through=False):
    """Return the (id, first, last) of all that rode, and whether any was under way."""
    draft = Draft()
    found = cohorts.ride(draft, through=through)
    return [(cohort.id, cohort.first, cohort.last) for cohort in draft.cohorts], found


def test_a_boundary_at_a_time():
    cohorts, (request,) = Cohorts(2), resting(4)
    draft = Draft()
    cohorts.depart([request], draft, plan=5, through=False)
    (cohort,) = draft.cohorts
    assert (cohort.id, cohort.first, cohort.last) == (0, 0, 0)
    (row,) = cohort.rows
    assert (row.request_id, row.slot, row.length, row.step) == (4, 4, 4, 1)
    assert (request.cohort, request.last_turn, request.is_resting) == (0, 5, False)
    assert ride(cohorts) == ([(0, 1, 1)], True)
    assert (request.in_flight, request.computed) == (0, 3)
    assert ride(cohorts) == ([(0, 2, 2)], True)
    assert (request.in_flight, request.computed, request.cohort) == (1, 4, None)
    assert request.is_resting
    assert ride(cohorts) == ([], False)


@pytest.mark.parametrize("gone", range(3))
def test_through_to_the_end_from_wherever(gone):
    cohorts, requests = Cohorts(3), resting(0, 1)
    cohorts.depart(requests, Draft(), plan=0, through=False)
    for _ in range(gone):
        ride(cohorts)
    assert ride(cohorts, through=True) == ([(0, 1 + gone, 3)], True)
    assert [request.in_flight for request in requests] == [1, 1]
    assert ride(cohorts, through=True) == ([], False)


def test_through_at_once():
    cohorts, (request,) = Cohorts(3), resting(0)
    draft = Draft()
    cohorts.depart([request], draft, plan=0, through=True)
    assert (draft.cohorts[0].first, draft.cohorts[0].last) == (0, 3)
    assert request.cohort is None
    assert ride(cohorts) == ([], False)


def test_who_leaves_leaves_a_gap_in_place():
    cohorts, requests = Cohorts(2), resting(0, 1, 2)
    cohorts.depart(requests, Draft(), plan=0, through=False)
    cohorts.leave(requests[1])
    assert requests[1].cohort is None
    cohorts.leave(requests[1])
    draft = Draft()
    cohorts.ride(draft, through=True)
    assert [row and row.request_id for row in draft.cohorts[0].rows] == [0, None, 2]
    assert [request.in_flight for request in requests] == [1, 0, 1]


class TestDepartures:
    @pytest.mark.parametrize(
        ("layers", "lanes", "expected"),
        [
            (3, 1, (0, 4, 8, 12)),
            (3, 3, (0, 2, 3, 4, 6, 7, 8, 10, 11, 12)),
            (3, 2, (0, 2, 4, 6, 8, 10, 12)),
            (4, 2, (0, 3, 5, 8, 10)),
            (3, 4, tuple(range(13))),
            (3, 9, tuple(range(13))),
        ],
    )
    def test_are_spread_over_the_iterations_of_a_token(self, layers, lanes, expected):
        cohorts, departed = Cohorts(layers), []
        for plan in range(13):
            ride(cohorts)
            for _ in cohorts.due((5,) * lanes, plan):
                cohorts.depart(resting(plan), Draft(), plan=plan, through=False)
                departed.append(plan)
        assert tuple(departed) == expected

    def test_lanes_take_turns(self):
        cohorts, sizes = Cohorts(3), []
        for plan in range(8):
            ride(cohorts)
            for size in cohorts.due((1, 2, 3, 4), plan):
                cohorts.depart(resting(plan), Draft(), plan=plan, through=False)
                sizes.append(size)
        assert sizes == [1, 2, 3, 4, 1, 2, 3, 4]

    @pytest.mark.parametrize("cohorts", [1, 2, 4, 8, 9, 40])
    def test_all_host_requests_make_a_token_in_as_many_iterations_as_there_are_boundaries(self, cohorts):
        policy = FixedPolicy(strategy="async_overlap", num_cohorts=cohorts, max_host_requests=24)
        scheduler = Scheduler(
            capacity(60, 4000, page=16, rows=4, host_rows=24, prompt=512), num_layers=8, policy=policy
        )
        for number in range(28):
            scheduler.add(Request(id=number, prompt=(1,), max_tokens=600))
        made = 0
        for number in range(18 * 9):
            plan = scheduler.schedule()
            scheduler.update(plan, [1] * len(plan.sampling_requests))
            if number >= 9 * 9:
                made += sum(row is not None for cohort in plan.arriving for row in cohort.rows)
        assert scheduler.num_on_host == 24
        assert made == pytest.approx(9 * 24, abs=3)

    def test_without_lanes_there_are_none(self):
        assert Cohorts(3).due((), 7) == ()

    def test_after_a_pause_the_first_does_not_wait(self):
        cohorts = Cohorts(3)
        cohorts.depart(resting(0), Draft(), plan=5, through=False)
        assert cohorts.due((1,), 6) == ()
        cohorts.clear()
        assert cohorts.due((1,), 6) == (1,)
