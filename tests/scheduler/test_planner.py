"""Decisions whose right answers are worked out by hand, and random ones against trying everything.

The machine of most tests has 4 layers: T_lin = 4 s whatever the rows, device attention of 0.02 s a token, host
attention of 0.02 s a token through all layers. 10 device rows of 10 tokens have T_att = 2 s.
"""

import itertools
import math
import random
from dataclasses import replace

import pytest

from apex_jax.scheduler import CostModel, Curve, DeviceSpec, HostSpec, Load, Measured, ModelShape, Situation, describe
from apex_jax.scheduler.cohorts import even
from apex_jax.scheduler.planner.options import PlannerOptions
from apex_jax.scheduler.planner.paper_rule import PaperRule, pipelining_bound
from apex_jax.scheduler.planner.planner import Planner
from apex_jax.scheduler.strategies.steady import steady

from .machines import capacity, machine

PROFILE = machine(layers=4, device_token=0.02, host_token=0.005)
DEVICE = {"num_layers": 4, "device_rows": 10, "device_kv_tokens": 100, "remaining_tokens": 10**10}


def planner(profile=PROFILE, *, rows=64, host_rows=512, **options):
    return Planner(CostModel(profile), capacity(1, 1, rows=rows, host_rows=host_rows), PlannerOptions(**options))


def situation(**changes):
    """10 device rows that fill the device, and as many host requests as given, of 10 tokens each."""
    rows = changes.get("host_rows", 0)
    return Situation(**{**DEVICE, "host_kv_tokens": 10 * rows, "free_host_tokens": 10**5, **changes})


class TestPaper:
    @pytest.mark.parametrize(("ratio", "bound"), [(0.5, 7.50), (1.0, 6.00), (1.5, 5.8333)])
    def test_bounds(self, ratio, bound):
        """The paper's worked example: T_att / T_lin of 0.5, 1 and 1.5."""
        assert pipelining_bound(1.0, ratio) == pytest.approx(bound, abs=5e-5)
        assert pipelining_bound(20.0, 20 * ratio) == pytest.approx(bound, abs=5e-5)

    def test_prompts_widen_the_window(self):
        """(2 + 1 + 1) (1 + 1 + 1) / 1: an iteration of 4 s in place of 3, of which the second pass is a third in
        place of half."""
        assert pipelining_bound(1.0, 1.0, 1.0) == pytest.approx(12)

    @pytest.mark.parametrize(
        ("times", "message"),
        [
            ((0, 1), "linear_s is 0; seconds above 0"),
            ((1, 0), "attention_s is 0; seconds above 0"),
            ((1, math.nan), "attention_s is nan"),
            ((1, 1, -1), "prompt_s is -1; seconds of at least 0"),
        ],
    )
    def test_times_that_say_nothing(self, times, message):
        with pytest.raises(ValueError, match=message):
            pipelining_bound(*times)

    @pytest.mark.parametrize("attention", [0.5, 1.0, 1.5])
    @pytest.mark.parametrize("prompt", [0.0, 1.0])
    @pytest.mark.parametrize("side", [0.97, 1.03])
    def test_predicted_rates_cross_where_the_rule_says(self, attention, prompt, side):
        """T_lin = 1, 10,000 device rows of one token, and host rows that fill the whole iteration."""
        ratio = side * pipelining_bound(1.0, attention, prompt)
        layers, rows = 400, 10_000
        token = attention / rows
        profile = machine(
            layers=layers, layer=1 / layers, device_token=token, host_token=ratio * token / layers, pair=prompt
        )
        model = CostModel(profile)
        load = Load(
            device_rows=rows,
            device_kv_tokens=rows,
            prefill_tokens=1 if prompt else 0,
            prefill_pairs=1 if prompt else 0,
        )
        count = int((2 + attention + prompt) / (ratio * token))
        alone = steady(model.costs, "device_only", load)
        both = steady(model.costs, "asymmetric_pipelining", load, even(count, 2), 1.0)
        rule = PaperRule.of(model.costs, load, count, 1.0)
        assert rule is not None
        assert rule.rate_ratio == pytest.approx(ratio)
        assert rule.prompt_s == pytest.approx(prompt)
        assert rule.holds == (side < 1) == (both.tokens_per_s > alone.tokens_per_s)

    def test_says_nothing_without_attention_on_both_sides(self):
        costs = CostModel(PROFILE).costs
        assert PaperRule.of(costs, Load(), 5, 10.0) is None
        assert PaperRule.of(costs, Load(device_rows=5, device_kv_tokens=10), 0, 10.0) is None


class TestStrategies:
    def test_all_requests_fit(self):
        got = planner()
        decision = got.decide(situation(remaining_tokens=100, free_device_tokens=1000))
        assert (decision.strategy, decision.lanes, decision.max_host_requests) == ("device_only", (), 0)
        assert got.choices[-1].reason == "all requests fit on the device"

    def test_few_host_requests_ride_along(self):
        """10 rows: layer_sync 20/6 = 3.33; pipelining 20/10; async_overlap (10 + 2)/6; device_only 10/6."""
        chosen = planner().choose(situation(host_rows=10))
        rates = {strategy: each.rate for strategy, each in chosen.candidates.items()}
        assert rates == pytest.approx(
            {
                "device_only": 10 / 6,
                "layer_sync": 20 / 6,
                "asymmetric_pipelining": 20 / 10,
                "async_overlap": 12 / 6,
                # 1 in the lane; the other 9 are one cohort, which makes a pass of its own in 4 of 5 iterations.
                "fast_lane": (10 + 1 + 9 / 5) / (6 + 4 / 5),
            }
        )
        assert chosen.decision.strategy == "layer_sync"
        assert len(chosen.decision.lanes) == 1
        assert chosen.decision.lanes[0] >= 10

    def test_more_are_pipelined(self):
        """28 rows take the host 6.72 s, of which layer_sync waits for all beyond its own attention, and pipelining for
        little."""
        chosen = planner(machine(layers=4, device_token=0.02, host_token=0.006)).choose(situation(host_rows=28))
        rates = {strategy: each.rate for strategy, each in chosen.candidates.items()}
        assert rates["layer_sync"] == pytest.approx(38 / (4 + 6.72))
        assert rates["asymmetric_pipelining"] == pytest.approx(38 / 10, rel=0.03)
        assert rates["async_overlap"] == pytest.approx((10 + 28 / 5) / 6)
        assert chosen.decision.strategy == "asymmetric_pipelining"
        assert len(chosen.decision.lanes) == 2
        assert min(chosen.decision.lanes) >= 14

    def test_many_overlap(self):
        """On a host 20 times slower, 15 rows fill 4/5 of 6 s: async_overlap (10 + 3)/6; layer_sync and pipelining
        wait."""
        decision = planner(machine(layers=4, device_token=0.02, host_token=0.04)).decide(situation(host_rows=15))
        assert decision.strategy == "async_overlap"
        assert sum(decision.lanes) >= 15

    def test_a_gain_below_the_margin_is_none(self):
        """A single host row adds a fifth of a token to 100 of the device, 0.2 %, or to 5 of them, 4 %."""
        slow = machine(layers=4, device_token=0.0, host_token=0.3)
        for rows, strategy in ((100, "device_only"), (5, "async_overlap")):
            here = situation(device_rows=rows, device_kv_tokens=10 * rows, host_rows=1, free_host_tokens=0)
            assert planner(slow, rows=100).decide(here).strategy == strategy

    def test_a_host_of_no_use(self):
        decision = planner(machine(layers=4, device_token=0.02, host_token=50.0)).decide(
            situation(host_rows=3, waiting=50, waiting_tokens=500)
        )
        assert (decision.strategy, decision.max_host_requests) == ("device_only", 0)

    def test_a_device_without_requests(self):
        decision = planner().decide(situation(device_rows=0, device_kv_tokens=0, host_rows=3))
        assert decision.strategy != "device_only"

    def test_the_rows_that_a_host_keeps_pace_with(self):
        """200 rows take the host 40 s. layer_sync would give 210/44 = 4.77 tokens a second with all, and
        async_overlap (10 + 30)/6 = 6.67 with the 150 that fill 6 s; each lane takes a fifth of them."""
        chosen = planner().choose(situation(host_rows=200, free_host_tokens=0))
        assert chosen.candidates["layer_sync"].rate == pytest.approx(210 / 44)
        overlap = chosen.candidates["async_overlap"]
        assert overlap.rate == pytest.approx(40 / 6, rel=0.01)
        assert overlap.lanes == (30,) * 5

    def test_loyalty(self):
        """A strategy stays while another gains less than 1 %, so that cohorts are not regrouped for nothing."""
        loyal = planner()
        assert loyal.decide(situation(host_rows=10)).strategy == "layer_sync"
        rates = {}
        for rows in range(11, 120):
            before = loyal.choices[-1].decision.strategy
            decision = loyal.decide(situation(host_rows=rows))
            rates = {name: each.rate for name, each in loyal.choices[-1].candidates.items()}
            assert rates[decision.strategy] >= max(rates.values()) / 1.01
            if decision.strategy != before:
                assert rates[decision.strategy] > 1.01 * rates[before]
        assert loyal.choices[-1].decision.strategy != "layer_sync"


class TestPrompts:
    """Prompts of 1 token with pairs of 3 s lengthen an iteration from 6 to 9 s, and the host's window by 3 s."""

    PROFILE = machine(layers=4, device_token=0.02, host_token=0.0115, pair=3.0)

    def test_prompts_widen_the_window(self):
        """20 rows need 9.2 s. Alone, layer_sync takes 4 + 9.2 for 30 tokens and pipelining 10 or little more;
        with prompts layer_sync's window is 5 s and pipelining has 13 s for all."""
        chosen = planner(self.PROFILE).choose(situation(host_rows=20))
        assert chosen.candidates["layer_sync"].rate < chosen.candidates["asymmetric_pipelining"].rate
        with_prompts = planner(self.PROFILE)
        with_prompts.decide(situation(host_rows=20, prefill_tokens=1))
        candidates = with_prompts.choices[-1].candidates
        # Device-only makes 10 tokens in 6 s, so prompts of 3 s are worth 5. The last job of an iteration, of 1.15 s,
        # has but the 0.75 s of the other cohort's post-attention.
        assert candidates["device_only"].rate == pytest.approx((10 + 5) / 9)
        assert candidates["asymmetric_pipelining"].rate == pytest.approx((30 + 5) / 13.4)
        assert candidates["async_overlap"].rate == pytest.approx((10 + 4 + 5) / 9)

    def test_they_count_as_often_as_they_come(self):
        """After many iterations of which every second one has prompts, both kinds count half."""
        got = planner(self.PROFILE)
        for turn in range(400):
            got.decide(situation(host_rows=20, prefill_tokens=turn % 2))
        assert got.choices[-1].candidates["device_only"].rate == pytest.approx((20 + 5) / (6 + 9), rel=0.02)

    def test_a_prompt_that_finds_no_place_does_not_count(self):
        """The first that waits needs 30 tokens and a page for each device request; none is free, nobody may leave."""
        got = planner(self.PROFILE, host_rows=20)
        full = situation(host_rows=20, prefill_tokens=1, waiting=3, waiting_tokens=90)
        got.decide(full)
        assert got.choices[-1].candidates["device_only"].device_token_s == pytest.approx(6)
        for _ in range(20):
            got.decide(replace(full, free_device_tokens=10_000))
        assert got.choices[-1].candidates["device_only"].device_token_s > 6

    def test_host_rows_rest_where_they_do_not_pay(self):
        """20 rows need 16 s. Beside a prompt of 30 s they cost nothing; without one 2 or 3 ride in the window of 2 s,
        since all of them would make 30 tokens in 20 s in place of 10 in 6 s."""
        got = planner(machine(layers=4, device_token=0.02, host_token=0.02, pair=30.0), strategies=("layer_sync",))
        riding = [sum(got.decide(situation(host_rows=20, prefill_tokens=turn % 2)).lanes) for turn in range(40)]
        assert max(riding[20::2]) <= 3
        assert set(riding[21::2]) == {20}


class TestHostRequests:
    def test_as_many_as_the_host_keeps_pace_with(self):
        """1,000 wait, memory for 10,000 of 10 tokens: async_overlap wants the 150 rows that fill 6 s."""
        decision = planner(host_rows=4096).decide(situation(waiting=1000, waiting_tokens=10_000))
        assert decision.strategy == "device_only"
        assert decision.max_host_requests == pytest.approx(150, abs=3)

    def test_no_more_than_memory_holds(self):
        decision = planner().decide(situation(waiting=1000, waiting_tokens=10_000, free_host_tokens=125))
        assert decision.max_host_requests == 12

    def test_no_more_than_there_are_slots(self):
        decision = planner(host_rows=7).decide(situation(waiting=1000, waiting_tokens=10_000))
        assert decision.max_host_requests == 7
        assert planner(host_rows=0).decide(situation(waiting=9, waiting_tokens=90)).max_host_requests == 0

    def test_no_more_than_wait(self):
        decision = planner().decide(situation(waiting=5, waiting_tokens=50, remaining_tokens=0))
        assert decision.max_host_requests == 5

    def test_async_overlap_starves_with_little_host_memory(self):
        """Room for 10 host rows: layer_sync makes 20/6 tokens a second of them, async_overlap 12/6."""
        chosen = planner().choose(situation(waiting=1000, waiting_tokens=10_000, free_host_tokens=100))
        rates = {name: each.rate for name, each in chosen.target.items()}
        assert max(rates, key=lambda name: rates[name]) == "layer_sync"
        assert rates["async_overlap"] == pytest.approx(12 / 6)

    def test_growth_that_the_device_cannot_hold_counts(self):
        """Nobody waits, but 10 requests of 10 tokens that grow to 110 need more than 600."""
        decision = planner().decide(situation(remaining_tokens=1000, free_device_tokens=500))
        assert decision.max_host_requests > 0

    def test_moving_a_request_must_pay(self):
        """Requests of 2 more tokens that take the host 30 s to move there and back are better left waiting."""
        slow = replace(PROFILE, migration=Curve.line(3.0))
        few = situation(waiting=100, waiting_tokens=1000, remaining_tokens=20)
        assert planner(slow).decide(few).max_host_requests == 0
        assert planner().decide(few).max_host_requests > 0


class TestEnds:
    def test_stragglers_are_not_parked(self):
        """A token through async_overlap takes 5 iterations. With two tokens left a request, that is too late."""
        profile = machine(layers=4, device_token=0.02, host_token=0.04)
        long, short = (situation(host_rows=15, remaining_tokens=25 * left) for left in (1000, 2))
        assert planner(profile).decide(long).strategy == "async_overlap"
        assert planner(profile).decide(short).strategy != "async_overlap"

    def test_nobody_starves(self):
        """A host that is of no use serves all the same once a request has rested for 8 tokens' worth of 5
        iterations."""
        useless = machine(layers=4, device_token=0.02, host_token=50.0)
        assert planner(useless).decide(situation(host_rows=3, oldest_host_wait=40)).strategy == "device_only"
        served = planner(useless).decide(situation(host_rows=3, oldest_host_wait=41))
        assert served.strategy != "device_only"
        assert sum(served.lanes) >= 1


class TestFollowing:
    def test_a_slower_host_changes_the_decision(self):
        got = planner()
        prediction = steady(got.model.costs, "layer_sync", Load(device_rows=10, device_kv_tokens=100), (10,), 10.0)
        assert got.decide(situation(host_rows=10)).strategy == "layer_sync"
        slow = got.model.costs.profile.host_attention(10, 100) * 4 * 100
        for _ in range(30):
            got.model.observe(prediction, Measured(iteration_s=4 + slow, host_busy_s=slow))
        assert got.model.factors.host_attention == pytest.approx(100, rel=0.1)
        assert got.decide(situation(host_rows=10)).strategy != "layer_sync"

    def test_nothing_is_worked_out_twice(self, monkeypatch):
        got = planner()
        calls = []
        choose = got.choose
        monkeypatch.setattr(got, "choose", lambda *args, **more: calls.append(args) or choose(*args, **more))
        decisions = [got.decide(situation(host_rows=10, device_kv_tokens=1000 + turn)) for turn in range(10)]
        assert len(calls) <= 2
        assert len({decision.strategy for decision in decisions}) == 1
        got.decide(situation(host_rows=11, device_kv_tokens=1000))
        assert len(calls) <= 3

    def test_choices_are_kept_when_they_change(self):
        got = planner()
        for rows in (0, 10, 0, 10, 11):
            got.decide(situation(host_rows=rows))
        assert [choice.decision.strategy for choice in got.choices] == ["device_only", "layer_sync"] * 2


class TestAgainstTryingEverything:
    SHAPE = ModelShape(
        name="m",
        num_layers=16,
        hidden_size=2048,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        intermediate_size=8192,
        vocab_size=32000,
    )

    def random_model(self, rng):
        device = DeviceSpec(
            name="d",
            memory_gb=16,
            weights_gb_per_s=10 ** rng.uniform(2, 3.5),
            attention_gb_per_s=10 ** rng.uniform(2, 3.5),
            tflops=10 ** rng.uniform(1, 3),
            overlap=rng.uniform(0.5, 1),
            link_gb_per_s=12,
            link_us=rng.choice([0, 30, 100]),
        )
        host = HostSpec(
            name="h", cores=8, memory_gb=64, attention_gb_per_s=10 ** rng.uniform(1, 2.5), job_us=rng.choice([0, 50])
        )
        return CostModel(describe(device=device, host=host, model=self.SHAPE))

    def everything(self, model, load, rows, tokens):
        """Yield the rates of all strategies with every number of riding rows (up to 60 of them) and cohorts."""
        yield steady(model.costs, "device_only", load).tokens_per_s
        for count in {*range(1, rows + 1, max(1, rows // 60)), rows}:
            yield steady(model.costs, "layer_sync", load, (count,), tokens).tokens_per_s
            yield steady(model.costs, "asymmetric_pipelining", load, even(count, 2), tokens).tokens_per_s
            for lanes in (1, 2, 3, 5, 8, 17):
                yield steady(model.costs, "async_overlap", load, even(count, lanes), tokens).tokens_per_s

    def test_at_least_97_percent_of_the_best(self):
        rng = random.Random(5)
        for _ in range(100):
            model = self.random_model(rng)
            rows, host_rows, tokens = rng.choice([1, 8, 64]), rng.choice([1, 4, 30, 200, 1000]), rng.randint(50, 4000)
            load = Load(device_rows=rows, device_kv_tokens=rows * tokens)
            best = max(self.everything(model, load, host_rows, tokens))
            chosen = Planner(model, capacity(1, 1, rows=64, host_rows=4096)).choose(
                Situation(
                    num_layers=16,
                    device_rows=rows,
                    device_kv_tokens=rows * tokens,
                    host_rows=host_rows,
                    host_kv_tokens=host_rows * tokens,
                    remaining_tokens=10**9,
                )
            )
            rate = chosen.candidates[chosen.decision.strategy].rate
            assert rate >= 0.97 * best, (load, host_rows, tokens, chosen.candidates)
            assert rate <= best * 1.01 or host_rows > 60


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_time_per_token": 0.0}, "max_time_per_token is 0"),
        ({"max_time_per_token": math.nan}, "max_time_per_token is nan"),
        ({"strategies": ("fastest",)}, "strategies has 'fastest'; allowed are"),
    ],
)
def test_options_refused(options, match):
    with pytest.raises(ValueError, match=match):
        planner(**options)


def test_decisions_in_every_corner():
    """Nothing, one of everything, and lots of everything: every combination gives lanes that its strategy may have."""
    counts = (0, 1, 300)
    for device, host, waiting, prompt, free in itertools.product(counts, counts, counts, (0, 512), (0, 10**6)):
        decision = planner(rows=512).decide(
            Situation(
                num_layers=4,
                device_rows=device,
                device_kv_tokens=50 * device,
                host_rows=host,
                host_kv_tokens=50 * host,
                prefill_tokens=prompt,
                waiting=waiting,
                waiting_tokens=100 * waiting,
                remaining_tokens=20 * (device + host),
                free_device_tokens=free,
                free_host_tokens=free,
            )
        )
        most = {"device_only": 0, "layer_sync": 1, "asymmetric_pipelining": 2, "async_overlap": 5, "fast_lane": 3}
        assert len(decision.lanes) <= most[decision.strategy]
        assert bool(decision.lanes) == (decision.strategy != "device_only")
        assert all(size > 0 for size in decision.lanes)
        assert host or decision.strategy == "device_only"
        assert 0 <= decision.max_host_requests <= 512
