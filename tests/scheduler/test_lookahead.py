"""Courses followed to their ends: by hand, and against the simulator, which follows every single request."""

import random

import pytest

from apex_jax.scheduler import CostModel, FixedPolicy, Load, Roster
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.experiment import Experiment
from apex_jax.scheduler.planner.journey import ALONE, Course, Room
from apex_jax.scheduler.planner.lookahead import SINGLE, Lookahead
from apex_jax.scheduler.planner.pacing import Pacing
from apex_jax.scheduler.roster import grouped
from apex_jax.scheduler.simulation.workload import Job, equal
from apex_jax.scheduler.strategies import STRATEGIES, named
from apex_jax.scheduler.strategies.steady import steady

from .machines import machine

KNOWN = Catalogue.built_in()
ROOM = Room(device_tokens=1600, host_tokens=16_000, page_size=16, device_requests=64, prompt_tokens=512)


def ahead(roster, *, room=ROOM, single=0, **times):
    """Return a look ahead on 4 layers of 1 s."""
    return Lookahead(CostModel(machine(**times)).costs, roster, room, single=single)


class TestByHand:
    def test_one_request(self):
        assert ahead(Roster(device=[(10, 7)])).seconds(ALONE) == pytest.approx(7 * 4)

    @pytest.mark.parametrize("single", [0, SINGLE])
    def test_a_prompt_gives_the_first_token(self, single):
        assert ahead(Roster(waiting=[(10, 7)]), single=single).seconds(ALONE) == pytest.approx(7 * 4)

    def test_attention_grows_with_the_context(self):
        """0.1 s a token; the middle of 20 contexts from 10 on, to which a step's half is added, is 20."""
        seconds = ahead(Roster(device=[(10, 20)]), device_token=0.1).seconds(ALONE)
        assert seconds == pytest.approx(20 * (4 + 0.1 * 20))

    @pytest.mark.parametrize("single", [0, SINGLE])
    def test_those_that_do_not_fit_take_another_wave(self, single):
        """Pages for two of four: 30 iterations after a prompt's, twice."""
        room = Room(device_tokens=160, host_tokens=1600, page_size=16, device_requests=2, prompt_tokens=512)
        look = ahead(Roster(waiting=[(16, 31)] * 4), room=room, single=single)
        assert look.seconds(ALONE) == pytest.approx(2 * 31 * 4)

    def test_with_a_host_one_wave_is_enough(self):
        room = Room(device_tokens=160, host_tokens=1600, page_size=16, device_requests=2, prompt_tokens=512)
        look = ahead(Roster(waiting=[(16, 31)] * 4), room=room)
        assert look.seconds(Course("layer_sync", 8, 8)) == pytest.approx(31 * 4)

    def test_host_rows_of_cohorts_crawl(self):
        """A token in 5 iterations beside a device request that outlives it; on the device alone it would rest, and
        begin when the other has ended."""
        room = Room(device_tokens=320, host_tokens=1600, page_size=16, device_requests=1, prompt_tokens=512)
        look = ahead(Roster(device=[(16, 100)], host=[(16, 10)]), room=room)
        assert look.seconds(Course("async_overlap", 8, 8)) == pytest.approx(100 * 4)
        assert look.seconds(ALONE) == pytest.approx(110 * 4)

    def test_moving_takes_the_host_its_time(self):
        """100 tokens of 1 s each keep the host busy for 100 s, in which the two tokens' 8 s find room."""
        look = ahead(Roster(host=[(100, 2)]), migration=1.0)
        assert look.seconds(ALONE) == pytest.approx(100)

    def test_it_stops_where_it_is_too_late(self):
        look = ahead(Roster(device=[(10, 7)]))
        assert look.seconds(ALONE, within=27) == float("inf")
        assert look.seconds(ALONE, within=29) == pytest.approx(28)

    @pytest.mark.parametrize("single", [0, SINGLE])
    def test_nothing_takes_no_time(self, single):
        assert ahead(Roster(), single=single).seconds(ALONE) == 0.0


class TestGroups:
    def test_few_stay_as_they_are(self):
        lengths = [(10, 3), (20, 1), (30, 2)]
        assert [(each.count, each.context, each.left) for each in grouped(lengths, 3)] == [
            (1, *each) for each in lengths
        ]

    def test_like_ones_become_one(self):
        groups = grouped([(10, 5)] * 40, 7)
        assert [(each.count, each.context, each.left) for each in groups] == [(20, 10, 5)] * 2

    def test_sums_and_the_longest_remain(self):
        rng = random.Random(3)
        lengths = [(rng.randint(1, 900), rng.randint(1, 500)) for _ in range(97)]
        groups = grouped(lengths, 10)
        assert len(groups) <= 10
        assert sum(each.count for each in groups) == 97
        assert sum(each.count * each.context for each in groups) == pytest.approx(sum(each[0] for each in lengths))
        assert sum(each.count * each.left for each in groups) == pytest.approx(sum(each[1] for each in lengths))
        assert max(each.left for each in groups) == max(each[1] for each in lengths)


class TestPacing:
    @pytest.mark.parametrize("prompt", [0, 300])
    @pytest.mark.parametrize(("rows", "host_rows"), [(1, 1), (7, 20), (40, 330), (0, 66)])
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_same_as_the_closed_forms(self, strategy, rows, host_rows, prompt):
        experiment = Experiment(
            device=KNOWN.device("a10g"), host=KNOWN.host("g5.4xlarge"), model=KNOWN.model("llama-3.1-8b")
        )
        model = experiment.cost_model
        pairs = prompt * (prompt + 1) / 2
        load = Load(device_rows=rows, device_kv_tokens=400 * rows, prefill_tokens=prompt, prefill_pairs=pairs)
        lanes = named(strategy).spread(host_rows, named(strategy).most_cohorts(32), 0.5)
        exact = steady(model.costs, strategy, load, lanes, 500.0)
        seconds, busy = Pacing(model.costs).seconds(strategy, rows, 400 * rows, host_rows, 500.0, (prompt, pairs))
        assert seconds == pytest.approx(exact.iteration_s, rel=1e-9)
        assert busy == pytest.approx(exact.host_busy_s, rel=1e-9)


class TestAgainstTheSimulator:
    """device_only and the strategies whose rows go through all layers; what cohorts of async_overlap make at an end
    depends on who ends last."""

    @pytest.mark.parametrize("strategy", ["device_only", "layer_sync", "asymmetric_pipelining"])
    def test_all_requests_end_when_it_says(self, strategy):
        rng, errors = random.Random(11), []
        for _ in range(24):
            device, host, name = rng.choice(
                [("a10g", "g5.16xlarge", "llama-3.1-8b"), ("rtx-4090", "desktop-ddr5", "llama-3.2-3b")]
            )
            engine = Experiment(
                device=KNOWN.device(device),
                host=KNOWN.host(host),
                model=KNOWN.model(name),
                device_kv_tokens=rng.choice([4000, 12_000, 30_000]),
                host_kv_gb=rng.choice([4, 40]),
            )
            prompt, output = rng.choice([60, 400, 900]), rng.choice([30, 150, 500])
            jobs = [
                Job(arrival_s=0, prompt=rng.randint(prompt // 2, prompt), output=rng.randint(output // 2, output))
                for _ in range(rng.choice([3, 20, 90, 200]))
            ]
            alone = strategy == "device_only"
            policy = FixedPolicy(strategy=strategy, max_host_requests=0 if alone else 10_000)
            machine = engine.capacity
            room = Room(
                device_tokens=machine.device_kv_tokens // 16 * 16,
                host_tokens=machine.host_kv_tokens,
                page_size=16,
                device_requests=machine.max_num_seqs,
                prompt_tokens=machine.max_prefill_tokens,
            )
            roster = Roster(waiting=[(job.prompt, job.output) for job in jobs])
            look = Lookahead(engine.cost_model.costs, roster, room, single=0)
            course = ALONE if alone else Course(strategy, 10_000, 10_000)
            errors.append(abs(look.seconds(course) / engine.run(jobs, policy=policy).seconds - 1))
        errors.sort()
        assert errors[len(errors) // 2] < 0.03
        assert errors[-1] < 0.20

    def test_a_long_queue_is_not_followed_request_by_request(self):
        """1,000 equal requests of which one fits at a time: the waves in the middle are taken at once."""
        engine = Experiment(
            device=KNOWN.device("t4"),
            host=KNOWN.host("g4dn.4xlarge"),
            model=KNOWN.model("llama-2-7b"),
            device_kv_tokens=400,
        )
        jobs = equal(prompt=150, output=100, requests=1000)
        room = Room(device_tokens=400, host_tokens=0, page_size=16, device_requests=256, prompt_tokens=1024)
        look = Lookahead(engine.cost_model.costs, Roster(waiting=[(150, 100)] * 1000), room)
        alone = engine.run(jobs, policy=FixedPolicy(strategy="device_only"))
        assert look.seconds(ALONE) == pytest.approx(alone.seconds, rel=0.05)
