"""Walks of plans and closed forms: against times worked out by hand, against each other, and against the published
formulas."""

import itertools
import random
from dataclasses import replace

import pytest

from apex_jax.scheduler import (
    Clock,
    Cohort,
    CohortLoad,
    CostModel,
    Curve,
    DecodeRow,
    DeviceSpec,
    Eviction,
    Fetch,
    HostSpec,
    Load,
    ModelShape,
    Padding,
    Plan,
    PrefillChunk,
    describe,
    prompt_pairs,
)
from apex_jax.scheduler.strategies import STRATEGIES, named
from apex_jax.scheduler.strategies.steady import DeviceSide, steady

from .machines import cohorts, machine

HYBRID = ("layer_sync", "asymmetric_pipelining", "async_overlap")


def row(number, length):
    return DecodeRow(request_id=number, slot=number, length=length, step=0)


class TestByHand:
    """Two layers of 4 s (pre-attention 1 s), head 2 s; 3 device rows of 10 tokens at 0.1 s a token and layer: 3 s."""

    PROFILE = machine(
        layers=2, layer=4.0, head=2.0, device_token=0.2, host_token=0.5, hop=1.0, overhead=0.5, boarding=0.25
    )
    DEVICE = Load(device_rows=3, device_kv_tokens=30)

    def walk(self, strategy, *riding, clock=None, profile=PROFILE, **load):
        return CostModel(profile).predict_load(strategy, replace(self.DEVICE, cohorts=riding, **load), clock)

    def test_device_only(self):
        """Passes 1, 4 and 3 + 2 s, attention twice 3 s, and the overhead."""
        got, _ = self.walk("device_only")
        assert got.iteration_s == pytest.approx(1 + 3 + 4 + 3 + 5 + 0.5)
        assert (got.device_busy_s, got.host_busy_s, got.device_wait_s) == (got.iteration_s, 0, 0)
        assert (got.device_tokens, got.host_tokens) == (3, 0)
        assert got.device.linear == 10
        assert got.device.device_attention == 6
        assert got.device_token_s == got.iteration_s
        assert got.host_token_s is None

    def test_layer_sync(self):
        """8 tokens take the host 4 s after a hop of 1: the device waits 2 s beyond its own attention, twice."""
        got, clock = self.walk("layer_sync", CohortLoad(id=7, rows=2, kv_tokens=8, first=0, last=2))
        assert got.iteration_s == pytest.approx(16.5 + 3 * 0.25 + 2 * 2)
        assert got.device_wait_s == pytest.approx(4)
        assert got.host_busy_s == pytest.approx(8)
        assert got.tokens == 5
        assert got.host_token_s == got.device_token_s == got.iteration_s
        assert got.critical.host_attention == pytest.approx(8)
        assert got.critical.transfer == pytest.approx(2 + 0.75)
        assert got.critical.device_attention == 0
        assert clock == Clock()

    def test_pipelining(self):
        """Passes of 1, 4 and 3 s for either cohort, device attention of 3 s after the first one's, one head of 2 s.

        The first job (6 s) begins at 1 + 1 and ends at 8; the second (2 s), submitted at 5, ends at 10. The first
        pass of layer 1 begins at 8 and ends at 12, attention at 15. The second one's runs to 19; the first job of
        layer 1 ran from 13 to 19, so the last pass begins at 19 and ends at 22. The second job, submitted at 20,
        ends at 22, so that the last pass runs to 25 and the head to 27.
        """
        profile = replace(self.PROFILE, boarding=Curve.constant(0.0), iteration_overhead=0.0)
        first = CohortLoad(id=1, rows=1, kv_tokens=12, first=0, last=2)
        second = CohortLoad(id=2, rows=1, kv_tokens=4, first=0, last=2)
        got, _ = self.walk("asymmetric_pipelining", first, second, profile=profile)
        assert got.iteration_s == pytest.approx(27)
        assert got.device_busy_s == pytest.approx(24)
        assert got.host_busy_s == pytest.approx(16)
        assert got.tokens == 5

    def test_a_parked_cohort_keeps_nobody_waiting_until_it_boards(self):
        """Its job ends 6 s after the start: 1 s of pass 0 and 3 s of attention leave 2 s to wait at boundary 1."""
        cohort = CohortLoad(id=1, rows=1, kv_tokens=4, first=1, last=1)
        got, clock = self.walk("async_overlap", cohort, clock=Clock(host_free=6.0, ready={1: 6.0}))
        assert got.iteration_s == pytest.approx(16.5 + 0.25 + 2)
        assert got.device_wait_s == pytest.approx(2)
        assert got.host_tokens == 0
        assert got.host_token_s == 3 * got.iteration_s
        # Boarded at 6, submitted at 10.25; its 2 s after the hop are over long before the end.
        assert got.host_busy_s == pytest.approx(2)
        assert clock == Clock()

    def test_a_late_job_is_left_to_the_next_iteration(self):
        """Submitted at 8 + 0.25 beside 8 s of passes and attention to come and the overhead; 40 tokens take 20 s."""
        cohort = CohortLoad(id=1, rows=1, kv_tokens=40, first=1, last=1)
        got, clock = self.walk("async_overlap", cohort)
        assert got.iteration_s == pytest.approx(16.75)
        assert clock.ready == {1: pytest.approx(8.25 + 1 + 20 - 16.75)}
        assert clock.host_free == clock.ready[1]

    def test_the_host_takes_jobs_in_turn(self):
        """Cohorts at 0 and 1 are submitted at 1.25 and 8.5 + 0; the first job runs 2.25..12.25, the second until 14."""
        riding = (
            CohortLoad(id=1, rows=1, kv_tokens=20, first=0, last=0),
            CohortLoad(id=2, rows=1, kv_tokens=4, first=1, last=1),
        )
        got, clock = self.walk("async_overlap", *riding)
        assert got.host_busy_s == pytest.approx(12)
        assert clock == Clock()
        longer, clock = self.walk("async_overlap", replace(riding[0], kv_tokens=36), riding[1])
        assert longer.iteration_s == pytest.approx(got.iteration_s)
        assert clock.ready == {1: pytest.approx(2.25 + 18 - 17), 2: pytest.approx(2.25 + 18 + 2 - 17)}

    def test_a_resting_cohorts_job_goes_on(self):
        got, clock = self.walk("device_only", clock=Clock(host_free=20.0, ready={5: 20.0}))
        assert got.iteration_s == pytest.approx(16.5)
        assert clock == Clock(host_free=3.5, ready={5: 3.5})

    def test_without_device_rows_only_cohorts_pass(self):
        got, _ = CostModel(self.PROFILE).predict_load(
            "async_overlap", Load(cohorts=(CohortLoad(id=1, rows=1, kv_tokens=4, first=1, last=1),))
        )
        assert got.iteration_s == pytest.approx(4.25 + 0.5)
        assert got.device_token_s is None

    def test_cohorts_cost_an_iteration_its_whole_step(self):
        """What going boundary by boundary takes more counts where a cohort rides, in walks and in closed forms."""
        profile = replace(self.PROFILE, stepwise_overhead=0.75)
        cohort = CohortLoad(id=1, rows=1, kv_tokens=4, first=1, last=1)
        assert self.walk("device_only", profile=profile)[0].iteration_s == pytest.approx(16.5)
        assert self.walk("async_overlap", cohort, profile=profile)[0].iteration_s == pytest.approx(16.75 + 0.75)
        for strategy, lanes in (("layer_sync", (2,)), ("asymmetric_pipelining", (1, 1)), ("async_overlap", (1,))):
            more, less = (
                steady(CostModel(p).costs, strategy, self.DEVICE, lanes, 4.0) for p in (profile, self.PROFILE)
            )
            assert more.iteration_s - less.iteration_s == pytest.approx(0.75)
            assert more.device.overhead == pytest.approx(1.25)

    def test_migration_keeps_the_host_busy(self):
        """Evicted pages arrive before the first job can begin: 16 tokens take 8 s, the job waits until then."""
        profile = replace(self.PROFILE, migration=Curve.line(0.5))
        cohort = CohortLoad(id=1, rows=1, kv_tokens=4, first=0, last=2)
        got, clock = self.walk("layer_sync", cohort, profile=profile, evicted_tokens=16, fetched_tokens=4)
        without, _ = self.walk("layer_sync", cohort, profile=profile)
        assert got.iteration_s - without.iteration_s == pytest.approx((8 + 2) - (1.25 + 3))
        assert got.host_busy_s == pytest.approx(8 + 4 + 2)
        assert clock.host_free == pytest.approx(2)

    def test_prompts(self):
        """32 prompt tokens ride with the rows; 0.001 s a pair through both layers."""
        profile = replace(self.PROFILE, prefill_attention=Curve.line(0.001))
        got, _ = self.walk("device_only", profile=profile, prefill_tokens=32, prefill_pairs=1000, prompt_samples=1)
        assert got.iteration_s == pytest.approx(16.5 + 1)
        assert got.device.prefill_attention == pytest.approx(1)
        assert got.device_tokens == 4

    def test_pairs_of_a_prompt(self):
        assert prompt_pairs(3, 0) == 1 + 2 + 3
        assert prompt_pairs(3, 10) == 11 + 12 + 13
        for window, tokens, start in itertools.product((1, 2, 5, 12), (1, 3, 9), (0, 1, 4, 10)):
            attended = (min(position + 1, window) for position in range(start, start + tokens))
            assert prompt_pairs(tokens, start, window) == sum(attended)


class TestPlans:
    PLAN = Plan(
        number=0,
        num_layers=4,
        strategy="async_overlap",
        prefill=(PrefillChunk(request_id=9, slot=9, start=16, tokens=(1, 2), samples=True, step=0),),
        decode=(row(1, 100), row(2, 50)),
        cohorts=(
            Cohort(id=3, rows=(row(4, 30), None, row(5, 20)), first=2, last=2),
            Cohort(id=6, rows=(row(6, 10),), first=4, last=4),
        ),
        evictions=(Eviction(request_id=7, slot=7, device_pages=(1, 2), host_pages=(3, 4)),),
        fetches=(Fetch(request_id=8, host_pages=(5,)),),
    )

    def test_in_counts(self):
        assert Load.of(self.PLAN, page_size=16) == Load(
            device_rows=2,
            device_kv_tokens=150,
            prefill_tokens=2,
            prefill_pairs=17 + 18,
            prompt_samples=1,
            cohorts=(
                CohortLoad(id=3, rows=2, kv_tokens=50, first=2, last=2, width=3),
                CohortLoad(id=6, rows=1, kv_tokens=10, first=4, last=4, width=1),
            ),
            evicted_tokens=32,
            fetched_tokens=16,
        )

    def test_in_counts_of_a_window(self):
        load = Load.of(replace(self.PLAN, sliding_window=17), page_size=16)
        assert (load.device_kv_tokens, load.prefill_pairs) == (17 + 17, 17 + 17)
        assert [cohort.kv_tokens for cohort in load.cohorts] == [17 + 17, 10]

    def test_predicted(self):
        model = CostModel(machine(layers=4, host_token=0.01))
        got, clock = model.predict(self.PLAN)
        assert (got.device_tokens, got.host_tokens) == (3, 1)
        assert got.strategy == "async_overlap"
        assert got.host_busy_s == pytest.approx(0.5)
        assert (got, clock) == model.predict_load("async_overlap", Load.of(self.PLAN, page_size=16))

    def test_an_empty_place_takes_a_row(self):
        """A layer's time rises by a second a row, and only the places of the cohort matter to it."""
        model = CostModel(machine(layers=4, layer=Curve.line(1.0), pre_share=0.0))
        full = CohortLoad(id=3, rows=3, kv_tokens=0, first=2, last=2)
        gap = replace(full, rows=2, width=3)
        device = Load(device_rows=1)
        times = [model.predict_load("async_overlap", replace(device, cohorts=(c,)))[0].iteration_s for c in (full, gap)]
        assert times == [pytest.approx(4 + 3)] * 2


class TestPadding:
    PROFILE = machine(
        layers=2,
        layer=Curve.line(1.0),
        padding=Padding(rows=(1, 4), mixed_rows=(0, 8), prompt_tokens=(16, 32), host_rows=(2,)),
    )

    @pytest.mark.parametrize(
        ("load", "rows"),
        [
            (Load(device_rows=1), 1),
            (Load(device_rows=2), 4),
            (Load(device_rows=2, prefill_tokens=17), 8 + 32),
            (Load(prefill_tokens=3), 16),
            (Load(device_rows=5), 5),
        ],
    )
    def test_a_batch_costs_as_much_as_the_size_it_is_padded_to(self, load, rows):
        model = CostModel(self.PROFILE)
        assert model.predict_load("device_only", load)[0].iteration_s == pytest.approx(2 * rows)
        assert steady(model.costs, "device_only", load).iteration_s == pytest.approx(2 * rows)

    def test_cohorts_too(self):
        model = CostModel(self.PROFILE)
        assert steady(model.costs, "layer_sync", Load(device_rows=2), (1,)).iteration_s == pytest.approx(2 * 6)


class TestClosedForms:
    """design: T_lin 4 s, T_att 2 s, B = 10 rows of 10 tokens, host rows of 10 tokens."""

    MODEL = CostModel(machine(layers=4, device_token=0.02, host_token=0.005))
    LOAD = Load(device_rows=10, device_kv_tokens=100)

    def test_device_only(self):
        assert steady(self.MODEL.costs, "device_only", self.LOAD).tokens_per_s == pytest.approx(10 / 6)

    def test_layer_sync(self):
        """C = 4 * 0.05 * n: 2 s at 10 rows, all within the device's attention, and 4 s at 20."""
        assert steady(self.MODEL.costs, "layer_sync", self.LOAD, (10,), 10).tokens_per_s == pytest.approx(20 / 6)
        assert steady(self.MODEL.costs, "layer_sync", self.LOAD, (20,), 10).tokens_per_s == pytest.approx(30 / 8)

    def test_pipelining(self):
        """Two passes of 4 s and attention of 2 s; 28 rows need 5.6 s of the host, which they have."""
        got = steady(self.MODEL.costs, "asymmetric_pipelining", self.LOAD, (14, 14), 10)
        assert got.tokens_per_s == pytest.approx(38 / 10)
        assert got.host_busy_s == pytest.approx(5.6)

    def test_pipelining_begins_and_ends_with_a_short_window(self):
        """Jobs of 1 s fill the window of every layer but two. The first job of an iteration is submitted after
        pre-attention alone, at 0.25, and needed after 0.5 of attention and the other cohort's 0.25; the second one of
        the last layer is needed after the first cohort's post-attention, in 0.75."""
        got = steady(self.MODEL.costs, "asymmetric_pipelining", self.LOAD, (20, 20), 10)
        assert got.iteration_s == pytest.approx(10 + 0.25 + 0.25)

    def test_async_overlap(self):
        """5 cohorts of 24 rows: 4/5 of them have a job in an iteration, of 1.2 s each; a token takes 5 iterations."""
        got = steady(self.MODEL.costs, "async_overlap", self.LOAD, (24,) * 5, 10)
        assert got.iteration_s == pytest.approx(6)
        assert got.tokens_per_s == pytest.approx((10 + 120 / 5) / 6)
        assert got.host_busy_s == pytest.approx(4 * 1.2)
        assert got.host_token_s == pytest.approx(30)

    def test_async_overlap_starves_with_few_requests(self):
        """5 host rows give one token an iteration and layer_sync 5."""
        few = [
            steady(self.MODEL.costs, *args, 10).host_tokens
            for args in (
                ("async_overlap", self.LOAD, (1,) * 5),
                ("layer_sync", self.LOAD, (5,)),
            )
        ]
        assert few == [1, 5]

    def test_staggered_cohorts_stay_below_a_step(self):
        """A layer takes twice as long from 32 rows on. 40 rows in one cohort cross it at one boundary in five; as
        5 cohorts of 8 they never do."""
        model = CostModel(machine(layers=4, layer=Curve(points=((1, 1.0), (31, 1.0), (32, 2.0), (1000, 2.0)))))
        one = steady(model.costs, "async_overlap", self.LOAD, (40,))
        five = steady(model.costs, "async_overlap", self.LOAD, (8,) * 5)
        assert five.iteration_s == pytest.approx(4)
        assert one.iteration_s == pytest.approx(4 + 4 / 5)

    def test_no_more_lanes_than_boundaries(self):
        with pytest.raises(ValueError, match="async_overlap has 6 lanes; at most 5 are allowed with 4 layers"):
            steady(self.MODEL.costs, "async_overlap", self.LOAD, (1,) * 6)
        with pytest.raises(ValueError, match="device_only has 1 lanes"):
            steady(self.MODEL.costs, "device_only", self.LOAD, (1,))

    def test_an_extrapolation_says_so(self):
        model = CostModel(machine(layer=Curve(points=((1, 1.0), (16, 1.0)))))
        inside, outside = Load(device_rows=10), Load(device_rows=17)
        assert not steady(model.costs, "device_only", inside).extrapolated
        assert steady(model.costs, "device_only", outside).extrapolated
        assert not steady(model.costs, "layer_sync", inside, (6,), 1.0).extrapolated
        assert steady(model.costs, "layer_sync", inside, (7,), 1.0).extrapolated
        assert model.predict_load("device_only", outside)[0].extrapolated
        ahead = CohortLoad(id=1, rows=7, kv_tokens=7, first=0, last=4)
        assert model.predict_load("layer_sync", replace(inside, cohorts=(ahead,)))[0].extrapolated


class TestTheyAgree:
    """The closed forms against hundreds of walked iterations, on random machines and loads."""

    LAYERS = 16
    SHAPE = ModelShape(
        name="m",
        num_layers=LAYERS,
        hidden_size=2048,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        intermediate_size=8192,
        vocab_size=128256,
    )

    def random_model(self, rng):
        device = DeviceSpec(
            name="d",
            memory_gb=16,
            weights_gb_per_s=rng.uniform(100, 1000),
            attention_gb_per_s=rng.uniform(100, 1000),
            tflops=rng.uniform(10, 100),
            overlap=rng.random(),
            layer_us=rng.choice([0, 50]),
            iteration_us=rng.choice([0, 1000]),
            link_gb_per_s=12,
            link_us=rng.choice([0, 20, 200]),
        )
        host = HostSpec(
            name="h", cores=8, memory_gb=64, attention_gb_per_s=rng.uniform(10, 100), job_us=rng.choice([0, 50, 200])
        )
        return CostModel(describe(device=device, host=host, model=self.SHAPE))

    def random_load(self, rng, *, rows):
        rows = rng.choice(rows)
        prompt = rng.choice([0, 0, 512])
        return Load(
            device_rows=rows,
            device_kv_tokens=rows * rng.randint(50, 2000),
            prefill_tokens=prompt,
            prefill_pairs=prompt * 256,
        )

    def difference(self, rng, strategy, rows):
        model, load = self.random_model(rng), self.random_load(rng, rows=rows)
        count, row_tokens = rng.choice([1, 8, 40, 200]), rng.randint(50, 2000)
        lanes = {
            "layer_sync": (count,),
            "asymmetric_pipelining": (rng.randint(1, count), count),
            "async_overlap": (count,) * rng.choice([1, 2, 4, 8, 17]),
            "fast_lane": (rng.randint(1, 8), *(count,) * rng.choice([1, 2, 3, 4, 8])),
        }[strategy]
        closed = steady(model.costs, strategy, load, lanes, row_tokens)
        clock, walked, turn = None, [], self.LAYERS + 1
        turns = {"async_overlap": 16, "fast_lane": 3}.get(strategy, 1)
        for iteration in range(2 * turns * turn):
            riding = cohorts(strategy, self.LAYERS, lanes, row_tokens, iteration)
            prediction, clock = model.predict_load(strategy, replace(load, cohorts=riding), clock)
            assert prediction.critical.total == pytest.approx(prediction.iteration_s)
            walked.append(prediction)
        walked = walked[turns * turn :]
        for name in ("device_busy_s", "host_busy_s", "host_tokens"):
            mean = sum(getattr(prediction, name) for prediction in walked) / len(walked)
            assert getattr(closed, name) == pytest.approx(mean, rel=1e-9)
        return closed.iteration_s / (sum(prediction.iteration_s for prediction in walked) / len(walked)) - 1

    @pytest.mark.parametrize("strategy", HYBRID)
    def test_beside_device_rows(self, strategy):
        rng = random.Random(1)
        for _ in range(30):
            assert abs(self.difference(rng, strategy, (1, 10, 100))) < 1e-9

    @pytest.mark.parametrize("strategy", ["layer_sync", "asymmetric_pipelining"])
    def test_without(self, strategy):
        rng = random.Random(2)
        for _ in range(20):
            assert abs(self.difference(rng, strategy, (0,))) < 1e-9

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_plain_seconds_are_those_of_the_prediction(self, strategy):
        rng = random.Random(6)
        for _ in range(20):
            model, load = self.random_model(rng), self.random_load(rng, rows=(1, 10, 100))
            chosen, tokens = named(strategy), rng.uniform(50, 2000)
            lanes = chosen.spread(rng.choice([1, 2, 37, 330]), chosen.most_cohorts(self.LAYERS), rng.choice([0.1, 0.5]))
            prediction = steady(model.costs, strategy, load, lanes, tokens)
            timing = DeviceSide(model.costs, load).timing(strategy, lanes, tokens)
            assert timing == pytest.approx([getattr(prediction, name) for name in timing._fields], rel=1e-12)

    def test_fast_lane(self):
        """At an iteration's ends, where the lane has no job, a large cohort delays it less or more than in the middle:
        of 17 boundaries two are such ends."""
        rng = random.Random(4)
        found = [self.difference(rng, "fast_lane", (1, 10, 100)) for _ in range(40)]
        assert all(-0.01 < each < 0.02 for each in found)
        assert sum(abs(each) < 0.002 for each in found) > len(found) / 3

    def test_async_overlap_without(self):
        """Two cohorts that have the device for themselves may wait for each other in ways of which the closed form
        knows the longest alone."""
        rng = random.Random(3)
        for _ in range(20):
            assert -0.1 < self.difference(rng, "async_overlap", (0,)) < 1e-9
