"""Courses followed to their ends: by hand, and against the simulator, from the start and from its middle on."""

import random

import pytest

from apex_jax.scheduler import Capacity, CostModel, FixedPolicy, Roster
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.experiment import Experiment
from apex_jax.scheduler.planner.forecast import prompts_begin
from apex_jax.scheduler.planner.host_row_selection import ALONE, Course, riding
from apex_jax.scheduler.planner.rollout import FOLLOWED, Rollout, Start
from apex_jax.scheduler.simulation.request_pool import SimRequest
from apex_jax.scheduler.simulation.virtual_engine import VirtualEngine
from apex_jax.scheduler.simulation.workload import Job, equal
from apex_jax.scheduler.strategies.steady import steady

from .machines import machine

KNOWN = Catalogue.built_in()


def capacity(**sizes):
    """Return a capacity with pages of 16 tokens, and host slots for everybody."""
    return Capacity(page_size=16, max_host_seqs=4096, max_prefill_tokens=512, **sizes)


ROOM = capacity(device_kv_tokens=1600, host_kv_tokens=16_000, max_num_seqs=64)


def start(roster, *, room=ROOM, **times):
    """Return where courses begin on 4 layers of 1 s."""
    return Start.of(CostModel(machine(**times)).costs, room, roster)


class TestByHand:
    def test_one_request(self):
        assert start(Roster(device=[(10, 7)])).seconds(ALONE) == pytest.approx(7 * 4)

    def test_a_prompt_gives_the_first_token(self):
        assert start(Roster(waiting=[(10, 7)])).seconds(ALONE) == pytest.approx(7 * 4)

    def test_attention_grows_with_the_context(self):
        """0.1 s a token, 20 contexts from 10 to 29."""
        seconds = start(Roster(device=[(10, 20)]), device_token=0.1).seconds(ALONE)
        assert seconds == pytest.approx(20 * 4 + 0.1 * sum(range(10, 30)))

    def test_those_that_do_not_fit_take_another_wave(self):
        """Two of four at once: 30 iterations after a prompt's, twice."""
        room = capacity(device_kv_tokens=160, max_num_seqs=2)
        assert start(Roster(waiting=[(16, 31)] * 4), room=room).seconds(ALONE) == pytest.approx(2 * 31 * 4)

    def test_host_rows_of_cohorts_crawl(self):
        """A token in 5 iterations beside a device request that outlives it; on the device alone it would rest, and
        begin when the other has ended."""
        room = capacity(device_kv_tokens=320, host_kv_tokens=1600, max_num_seqs=1)
        here = start(Roster(device=[(16, 100)], host=[(16, 10)]), room=room)
        assert here.seconds(Course("async_overlap", 8, 8)) == pytest.approx(100 * 4)
        assert here.seconds(ALONE) == pytest.approx(110 * 4, rel=0.01)

    def test_moving_takes_the_host_its_time(self):
        """99 tokens in 7 pages of 16, 1 s each, keep the host busy for 112 s, in which the two tokens' 8 s begin."""
        seconds = start(Roster(host=[(100, 2)]), migration=1.0).seconds(ALONE)
        assert seconds == pytest.approx(112 + 2 * 4)

    def test_a_longest_request_fits_whatever_the_room(self):
        """Nothing could be followed to its end otherwise."""
        room = capacity(device_kv_tokens=32, max_num_seqs=2)
        assert start(Roster(waiting=[(100, 5)]), room=room).seconds(ALONE) == pytest.approx(5 * 4)

    @pytest.mark.parametrize(("arrivals", "tokens"), [((1, 2), 20 + 29), ((2, 1), 30 + 19)])
    def test_who_arrived_last_makes_way(self, arrivals, tokens):
        """Three pages for two requests that hold one each: after a token the last one waits until the other ends."""
        room = capacity(device_kv_tokens=48, max_num_seqs=8)
        here = start(Roster(device=[(16, 20), (16, 30)], arrivals=arrivals), room=room)
        assert here.seconds(ALONE) == pytest.approx(tokens * 4)

    def test_it_goes_from_event_to_event(self):
        rollout = Rollout(start(Roster(device=[(10, 7), (10, 3)])), ALONE)
        rollout.go_on()
        assert (rollout.now, rollout.is_over) == (pytest.approx(3 * 4), False)
        rollout.go_on()
        assert (rollout.now, rollout.is_over) == (pytest.approx(7 * 4), True)

    def test_a_course_on_which_nothing_moves_never_ends(self):
        """A request that is said to be longer than it may be, and waits for pages that there are not."""
        room = capacity(device_kv_tokens=32, max_num_seqs=2)
        assert start(Roster(waiting=[(33, 0)]), room=room).seconds(ALONE) == float("inf")

    def test_nothing_takes_no_time(self):
        assert start(Roster()).seconds(ALONE) == 0.0


def served(engine, course, jobs):
    """Keep to a course with the cost model's own times; yield the time and what there is, last when all have ended."""
    model = engine.cost_model
    virtual = VirtualEngine(engine.capacity, model.profile.num_layers)
    for number, job in enumerate(jobs):
        virtual.scheduler.wait(SimRequest(id=number, arrival_s=0.0, prompt=job.prompt, output=job.output))
    while not virtual.scheduler.is_empty:
        situation = virtual.situation()
        yield virtual.now, virtual.scheduler.roster()
        step = virtual.begin(
            riding(course, situation, model.costs, begins=prompts_begin(situation, course.most, page_size=16))
        )
        prediction = steady(model.costs, step.turn.strategy, step.load, step.turn.lanes, step.row_tokens)
        moving = model.costs.migration(virtual.scheduler.moved_tokens) if virtual.scheduler.moved_tokens else 0.0
        seconds = max(prediction.iteration_s, moving and prediction.host.total + moving)
        virtual.end(step, seconds, step.iterations)
    yield virtual.now, virtual.scheduler.roster()


class TestMany:
    def test_so_many_are_followed_one_by_one(self):
        assert start(Roster(waiting=[(9, 9)] * FOLLOWED)).each == 1

    def test_of_more_some_are_and_the_longest(self):
        rng = random.Random(3)
        sides = [[(rng.randint(1, 900), rng.randint(1, 500)) for _ in range(count)] for count in (70, 700, 1278)]
        here = start(Roster(*sides, range(0, 4096, 2)))
        assert here.each == 2048 / FOLLOWED == 4
        assert [len(side) for side in here.roster[:3]] == [18, 175, 320]
        for side, followed in zip(sides, here.roster[:3], strict=True):
            assert set(followed) <= set(side)
            assert max(left for _, left in followed) == max(left for _, left in side)
        everybody = [lengths for side in sides for lengths in side]
        followed = [lengths for side in here.roster[:3] for lengths in side]
        assert [everybody[number // 2] for number in here.roster.arrivals] == followed
        assert list(here.roster.arrivals) == sorted(set(here.roster.arrivals))
        # Where the longest does not fit into a quarter it is given room.
        longest = max(context + left - 1 for context, left in followed)
        assert here.capacity.device_kv_tokens == -(-longest // 16) * 16
        assert here.capacity.host_kv_tokens == ROOM.host_kv_tokens / 4

    @pytest.mark.parametrize("strategy", ["device_only", "layer_sync", "asymmetric_pipelining", "async_overlap"])
    def test_they_end_about_when_all_would(self, strategy):
        """2,000 requests of spread lengths, a quarter of which is followed."""
        rng = random.Random(5)
        engine = Experiment(
            device=KNOWN.device("a10g"),
            host=KNOWN.host("g5.16xlarge"),
            model=KNOWN.model("llama-3.1-8b"),
            host_kv_gb=30,
        )
        jobs = [Job(arrival_s=0, prompt=rng.randint(50, 400), output=rng.randint(20, 300)) for _ in range(2000)]
        course = ALONE if strategy == "device_only" else Course(strategy, 10_000, 10_000)
        here = Start.of(engine.cost_model.costs, engine.capacity, Roster(waiting=[(j.prompt, j.output) for j in jobs]))
        *_, (end, _) = served(engine, course, jobs)
        assert here.seconds(course) == pytest.approx(end, rel=0.05)

    def test_a_long_queue(self):
        """1,000 equal requests, of which few fit at a time."""
        engine = Experiment(
            device=KNOWN.device("t4"),
            host=KNOWN.host("g4dn.4xlarge"),
            model=KNOWN.model("llama-2-7b"),
            device_kv_tokens=4000,
        )
        here = Start.of(engine.cost_model.costs, engine.capacity, Roster(waiting=[(150, 100)] * 1000))
        alone = engine.run(equal(prompt=150, output=100, requests=1000), policy=FixedPolicy(strategy="device_only"))
        assert here.seconds(ALONE) == pytest.approx(alone.seconds, rel=0.1)


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
        moments = list(served(engine, course, jobs))
        end = moments[-1][0]
        for now, roster in (moments[0], moments[len(moments) // 2]):
            start = Start.of(engine.cost_model.costs, engine.capacity, roster)
            assert now + start.seconds(course) == pytest.approx(end, rel=0.02)
