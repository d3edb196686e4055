"""Courses followed request by request: by hand, and against the simulator, from the start and from its middle on."""

import random

import pytest

from apex_jax.scheduler import CostModel, Roster
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.experiment import Experiment
from apex_jax.scheduler.planner.forecast import prompts_begin
from apex_jax.scheduler.planner.host_row_selection import riding
from apex_jax.scheduler.planner.journey import ALONE, Course, Room
from apex_jax.scheduler.planner.lookahead import SINGLE, Lookahead
from apex_jax.scheduler.planner.pacing import Pacing
from apex_jax.scheduler.planner.rollout import Rehearsal
from apex_jax.scheduler.simulation.request_pool import SimRequest
from apex_jax.scheduler.simulation.virtual_engine import VirtualEngine
from apex_jax.scheduler.simulation.workload import Job
from apex_jax.scheduler.strategies.steady import steady

from .machines import machine

KNOWN = Catalogue.built_in()
ROOM = Room(device_tokens=1600, host_tokens=16_000, page_size=16, device_requests=64, prompt_tokens=512)


def ahead(roster, *, room=ROOM, **times):
    """Return a look ahead on 4 layers of 1 s."""
    look = Lookahead(CostModel(machine(**times)).costs, roster, room)
    assert look.is_single
    return look


class TestByHand:
    def test_attention_grows_with_the_context(self):
        """0.1 s a token, 20 contexts from 10 to 29."""
        seconds = ahead(Roster(device=[(10, 20)]), device_token=0.1).seconds(ALONE)
        assert seconds == pytest.approx(20 * 4 + 0.1 * sum(range(10, 30)))

    def test_a_longest_request_fits_whatever_the_room(self):
        """Nothing could be followed to its end otherwise."""
        room = Room(device_tokens=32, host_tokens=0, page_size=16, device_requests=2, prompt_tokens=512)
        assert ahead(Roster(waiting=[(100, 5)]), room=room).seconds(ALONE) == pytest.approx(5 * 4)

    @pytest.mark.parametrize(("arrivals", "tokens"), [((1, 2), 20 + 29), ((2, 1), 30 + 19)])
    def test_who_arrived_last_makes_way(self, arrivals, tokens):
        """Three pages for two requests that hold one each: after a token the last one waits until the other ends."""
        room = Room(device_tokens=48, host_tokens=0, page_size=16, device_requests=8, prompt_tokens=512)
        look = ahead(Roster(device=[(16, 20), (16, 30)], arrivals=arrivals), room=room)
        assert look.seconds(ALONE) == pytest.approx(tokens * 4)

    def test_it_goes_on_where_it_stopped_and_stops_where_it_is_too_late(self):
        look = ahead(Roster(device=[(10, 7), (10, 3)]))
        course = look.begin(ALONE)
        assert isinstance(course, Rehearsal)
        assert course.go_on(2, 1000) == 0
        assert (course.now, course.is_over) == (pytest.approx(3 * 4), False)
        assert course.go_on(6, 1000) == 4
        assert (course.now, course.is_over) == (pytest.approx(7 * 4), True)
        assert look.seconds(ALONE, within=27) == float("inf")

    def test_a_course_on_which_nothing_moves_never_ends(self):
        """A request that is said to be longer than it may be, and waits for pages that there are not."""
        room = Room(device_tokens=32, host_tokens=0, page_size=16, device_requests=2, prompt_tokens=512)
        look = ahead(Roster(waiting=[(33, 0)]), room=room)
        assert look.seconds(ALONE) == float("inf")

    def test_many_are_followed_in_groups(self):
        assert not Lookahead(CostModel(machine()).costs, Roster(waiting=[(9, 9)] * (SINGLE + 1)), ROOM).is_single


def served(engine, course, jobs):
    """Keep to a course with the cost model's own times; yield the time and what there is, last when all have ended."""
    model, pacing = engine.cost_model, Pacing(engine.cost_model.costs)
    virtual = VirtualEngine(engine.capacity, model.profile.num_layers)
    for number, job in enumerate(jobs):
        virtual.scheduler.wait(SimRequest(id=number, arrival_s=0.0, prompt=job.prompt, output=job.output))
    while not virtual.scheduler.is_empty:
        situation = virtual.situation()
        yield virtual.now, virtual.scheduler.roster()
        step = virtual.begin(
            riding(course, situation, pacing, begins=prompts_begin(situation, course.most, page_size=16))
        )
        prediction = steady(model.costs, step.turn.strategy, step.load, step.turn.lanes, step.row_tokens)
        moving = model.costs.migration(virtual.scheduler.moved_tokens) if virtual.scheduler.moved_tokens else 0.0
        seconds = max(prediction.iteration_s, moving and prediction.host.total + moving)
        virtual.end(step, seconds, step.iterations)
    yield virtual.now, virtual.scheduler.roster()


class TestAgainstTheSimulator:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize(
        "course",
        [
            ALONE,
            Course("layer_sync", 1000, 1000),
            Course("asymmetric_pipelining", 1000, 1000, rests=True),
            Course("async_overlap", 1000, 1000, cohorts=4),
        ],
        ids=lambda course: course.strategy,
    )
    def test_all_requests_end_when_it_says(self, course, seed):
        """From the start, and from the middle on, where part of a prompt or a token may be done that it is not told."""
        rng = random.Random(seed)
        device, host, name = rng.choice(
            [("a10g", "g5.16xlarge", "llama-3.1-8b"), ("rtx-4090", "desktop-ddr5", "llama-3.2-3b")]
        )
        engine = Experiment(
            device=KNOWN.device(device),
            host=KNOWN.host(host),
            model=KNOWN.model(name),
            device_kv_tokens=rng.choice([4000, 12_000]),
            host_kv_gb=rng.choice([2, 40]),
        )
        jobs = [
            Job(arrival_s=0, prompt=rng.randint(100, 900), output=rng.randint(20, 500))
            for _ in range(rng.choice([3, 20, 60]))
        ]
        here = engine.capacity
        room = Room(
            device_tokens=here.device_kv_tokens // 16 * 16,
            host_tokens=here.host_kv_tokens,
            page_size=16,
            device_requests=here.max_num_seqs,
            prompt_tokens=here.max_prefill_tokens,
        )
        moments = list(served(engine, course, jobs))
        end = moments[-1][0]
        for now, roster in (moments[0], moments[len(moments) // 2]):
            seconds = Lookahead(engine.cost_model.costs, roster, room).seconds(course)
            assert now + seconds == pytest.approx(end, rel=0.02)
