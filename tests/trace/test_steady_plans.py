"""Steady plans: that over the iterations of a token everybody gets what the strategies promise."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_jax.scheduler.strategies import STRATEGIES
from apex_jax.tracing.steady_plans import steady_plan


@given(
    strategy=st.sampled_from(STRATEGIES[1:]),
    layers=st.integers(1, 40),
    device_rows=st.integers(0, 3),
    host_rows=st.integers(1, 60),
    cohorts=st.integers(1, 41),
    start=st.integers(0, 100),
)
def test_everybody_gets_tokens(strategy, layers, device_rows, host_rows, cohorts, start):
    """A device request one in each plan, a host request too, or in a spaced cohort, beside device rows, one in L + 1
    plans."""
    most = (layers + 1) // 2 if strategy == "fast_lane" else layers + 1
    cohorts = min(cohorts, most)
    count = {"layer_sync": 1, "asymmetric_pipelining": 2, "async_overlap": cohorts, "fast_lane": 1 + cohorts}[strategy]
    if host_rows < count:
        return
    sizes = {"num_layers": layers, "device_rows": device_rows, "host_rows": host_rows, "num_cohorts": cohorts}
    plans = [steady_plan(strategy, number=start + i, **sizes) for i in range(layers + 1)]
    tokens = Counter(request for plan in plans for request in plan.sampling_requests)
    often = {"async_overlap": 0, "fast_lane": host_rows // count}.get(strategy, host_rows) if device_rows else host_rows
    assert tokens == Counter(
        dict.fromkeys(range(device_rows + often), layers + 1)
        | dict.fromkeys(range(device_rows + often, device_rows + host_rows), 1)
    )


def test_cohorts_ride_all_boundaries_in_turn():
    plans = [steady_plan("async_overlap", num_layers=6, device_rows=1, host_rows=5, number=n) for n in range(30)]
    rides = {}
    for plan in plans:
        assert len({cohort.first for cohort in plan.cohorts}) == 2
        for cohort in plan.cohorts:
            assert cohort.first == cohort.last
            rides.setdefault(cohort.id, []).append(cohort.first)
    whole = [boundaries for boundaries in rides.values() if len(boundaries) == 7]
    assert len(whole) >= 6
    assert all(boundaries == [*range(7)] for boundaries in whole)


def test_lengths_grow_by_a_token():
    for strategy in STRATEGIES[1:]:
        plans = [steady_plan(strategy, num_layers=3, device_rows=1, host_rows=3, number=n) for n in range(20)]
        for request in (1, 2, 3):
            rows = [row for p in plans for c in p.arriving for row in c.rows if row and row.request_id == request]
            assert [row.length for row in rows] == [*range(rows[0].length, rows[0].length + len(rows))]
            assert len({row.length - row.step for row in rows}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; at least 1"),
        ({"num_cohorts": 0}, "num_cohorts is 0; at least 1"),
        ({"length": 0}, "length is 0; at least 1"),
        ({"device_rows": -1}, "device_rows is -1; it cannot be negative"),
        ({"number": -1}, "number is -1; it cannot be negative"),
        ({"device_rows": 0, "host_rows": 0}, "both 0; a plan needs rows"),
        ({"strategy": "device_only"}, "host_rows is 6; device_only has no place"),
        ({"strategy": "auto"}, "no strategy 'auto'; the strategies are device_only, layer_sync"),
        ({"host_rows": 1}, "1 host rows are too few for the 2 cohorts of async_overlap"),
        ({"num_cohorts": 6}, "num_cohorts is 6; 4 layers have 5 boundaries"),
    ],
)
def test_refuses(change, message):
    arguments = {"strategy": "async_overlap", "num_layers": 4, "device_rows": 2, "host_rows": 6} | change
    with pytest.raises(ValueError, match=message):
        steady_plan(arguments.pop("strategy"), **arguments)
