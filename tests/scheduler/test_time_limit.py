"""Limits on time per token: what is ruled out, who may go to the host, and what happens where nothing keeps them.

4 layers of 1 s: T_lin = 4 s whatever the rows. 10 device rows of 10 tokens have T_att = 2 s. A host row of 10 tokens
takes the host 0.4 s in a layer, so that 15 of them give tokens of these times:

    device_only            6 s on the device, none on the host
    layer_sync             4 + 4 * 6 = 28 s on both
    asymmetric_pipelining  25 s on both: jobs of 3.2 and 2.8 s, the first begins after 0.25 s, the last pass is 0.75 s
    async_overlap          6 s on the device, 5 iterations or 30 s on the host
"""

import math

import pytest

from apex_jax.scheduler import CostModel, Situation
from apex_jax.scheduler.planner.options import PlannerOptions
from apex_jax.scheduler.planner.planner import Planner

from .machines import capacity, machine

SLOW_HOST = machine(layers=4, device_token=0.02, host_token=0.04)
QUICK_HOST = machine(layers=4, device_token=0.02, host_token=0.005)


def planner(limit, profile=SLOW_HOST, *, rows=64, **options):
    sizes = capacity(1, 1, rows=rows, host_rows=512)
    return Planner(CostModel(profile), sizes, PlannerOptions(**options, max_time_per_token=limit))


def situation(**changes):
    rows = changes.get("host_rows", 0)
    values = {"num_layers": 4, "device_rows": 10, "device_kv_tokens": 100, "remaining_tokens": 10**10}
    return Situation(**{**values, "host_kv_tokens": 10 * rows, "free_host_tokens": 0, **changes})


def test_times_by_hand():
    """No number of rows keeps 20 s; all of them are the least late."""
    candidates = planner(20.0).choose(situation(host_rows=15)).candidates
    assert {name: (each.device_token_s, each.host_token_s) for name, each in candidates.items()} == {
        "device_only": (pytest.approx(6), math.inf),
        "layer_sync": (pytest.approx(28), pytest.approx(28)),
        "asymmetric_pipelining": (pytest.approx(25), pytest.approx(25)),
        "async_overlap": (pytest.approx(6), pytest.approx(30)),
        # A row in the lane. The 14 others board in 4 of 5 iterations, and the lane's second next pass begins when
        # their job of 5.6 s and its own of 0.4 s are done, 7.5 s after that boundary's pass instead of 2 s.
        "fast_lane": (pytest.approx(6 + 4 / 5 * 5.5), pytest.approx(10.4 * 15 / (1 + 14 / 5))),
    }


@pytest.mark.parametrize(
    ("limit", "strategy"),
    [
        (None, "async_overlap"),
        (31.0, "async_overlap"),
        (29.0, "asymmetric_pipelining"),
        (26.0, "asymmetric_pipelining"),
    ],
)
def test_what_keeps_the_limit_and_makes_most(limit, strategy):
    """At 29 s both pipelining, of 25/25 tokens a second, and layer_sync, of 25/28, are left."""
    assert planner(limit).decide(situation(host_rows=15)).strategy == strategy


def test_host_requests_without_tokens_break_it():
    """Device_only makes 10/6 tokens a second, more than what keeps 29 s: 25/25."""
    chosen = planner(29.0).choose(situation(host_rows=15))
    assert chosen.candidates["device_only"].rate > chosen.candidates[chosen.decision.strategy].rate
    assert (
        "device_only (host requests get no tokens), async_overlap (30,000 ms), fast_lane (41,053 ms) would break"
        in chosen.reason
    )


def test_all_that_are_there_count_not_only_those_that_ride():
    """One of two host rows takes layer_sync 6 s, but each has a turn in every second iteration: 12 s. Both take
    4 + 2 * 1.6 = 7.2 s."""
    chosen = planner(8.0).choose(situation(host_rows=2))
    assert chosen.decision.strategy == "layer_sync"
    assert sum(chosen.decision.lanes) == 2


@pytest.mark.parametrize("limit", [20.0, 5.0])
def test_where_nothing_keeps_it_the_least_late_is_taken(limit):
    chosen = planner(limit).choose(situation(host_rows=15))
    assert chosen.decision.strategy == "asymmetric_pipelining"
    assert chosen.reason == (
        f"no plan keeps the limit of {1000 * limit:,.0f} ms a token, this is the least late with 25,000 ms"
    )


def test_where_the_device_alone_breaks_it():
    chosen = planner(1.0).choose(situation(waiting=100, waiting_tokens=1000, free_host_tokens=10**5))
    assert (chosen.decision.strategy, chosen.decision.max_host_requests) == ("device_only", 0)
    assert "no plan keeps the limit of 1,000 ms a token, this is the least late with 6,000 ms" in chosen.reason


def test_where_nothing_would_keep_it_once_requests_are_there():
    """Nobody runs yet; 10 of those that wait fit on the device, whose tokens take 6 s there."""
    waiting = situation(
        device_rows=0, device_kv_tokens=0, free_device_tokens=100, waiting=30, waiting_tokens=300, free_host_tokens=1000
    )
    chosen = planner(5.0, rows=10).choose(waiting)
    assert (chosen.decision.strategy, chosen.decision.max_host_requests) == ("device_only", 0)
    assert chosen.reason == (
        "with all that wait no plan keeps the limit of 5,000 ms a token, device_only is the least late with 6,000 ms"
    )


@pytest.mark.parametrize(("limit", "most"), [(8.1, 20), (6.5, 12), (5.0, 0)])
def test_who_may_go_to_the_host(limit, most):
    """Of rows that take the host 0.2 s each, layer_sync takes 4 + 0.2 n; without a limit async_overlap wants 150."""
    waiting = situation(waiting=1000, waiting_tokens=10_000, free_host_tokens=10**5)
    assert planner(limit, QUICK_HOST).decide(waiting).max_host_requests == most
    assert planner(None, QUICK_HOST).decide(waiting).max_host_requests == pytest.approx(150, abs=3)


def test_the_explanation_of_who_may_not():
    waiting = situation(waiting=1000, waiting_tokens=10_000, free_host_tokens=10**5)
    reason = planner(8.1, QUICK_HOST).choose(waiting).reason
    assert reason.startswith("layer_sync will pay once requests are on the host; asymmetric_pipelining (")
    assert reason.endswith("would break the limit of 8,100 ms a token")


def test_ageing_keeps_the_limit_where_it_can():
    """async_overlap makes most, but its tokens take 30 s."""
    old = situation(host_rows=15, oldest_host_wait=41)
    chosen = planner(26.0).choose(old)
    assert planner(None).choose(old).decision.strategy == "async_overlap"
    assert chosen.decision.strategy == "asymmetric_pipelining"
    assert chosen.reason.startswith("a host request has rested for 8 tokens' worth of iterations, so they ride; ")


def test_ageing_that_breaks_the_limit_says_so():
    chosen = planner(20.0).choose(situation(host_rows=15, oldest_host_wait=41))
    assert chosen.decision.strategy == "asymmetric_pipelining"
    assert "so they ride; no plan keeps the limit of 20,000 ms a token" in chosen.reason


def test_host_rows_ride_beside_prompts_and_without():
    """20 rows take layer_sync 20 s without a prompt, and 36 s beside one of 30 s: 28 s in the mean. Without a limit
    most of them rest where there is no prompt."""
    profile = machine(layers=4, device_token=0.02, host_token=0.02, pair=30.0)
    riding = {}
    for limit in (None, 30.0):
        got = planner(limit, profile, strategies=("layer_sync",))
        turns = [sum(got.decide(situation(host_rows=20, prefill_tokens=turn % 2)).lanes) for turn in range(40)]
        riding[limit] = set(turns[20:])
    assert riding[30.0] == {20}
    assert min(riding[None]) <= 3


def test_it_holds_in_every_situation_that_can_keep_it():
    """What is chosen keeps the limit whenever some candidate does."""
    for limit in (1.0, 6.5, 8.0, 12.0, 20.0, 27.0, 31.0, 60.0):
        got = planner(limit)
        for rows in range(40):
            chosen = got.choose(situation(host_rows=rows, oldest_host_wait=41 * (rows % 2)))
            kept = [name for name, each in chosen.candidates.items() if each.keeps(limit)]
            assert not kept or chosen.decision.strategy in kept
