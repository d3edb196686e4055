"""What a policy is told, and what the fixed one answers."""

import pytest

from apex_jax.scheduler import Decision, FixedPolicy, Request, Scheduler, Situation

from .machines import capacity

PAGE = 4


class Listening:
    """A policy that notes what it is told."""

    def __init__(self, decision):
        self.decision, self.told = decision, []

    def decide(self, situation):
        self.told.append(situation)
        return self.decision


class TestFixed:
    @pytest.mark.parametrize(
        ("strategy", "cohorts", "rows", "lanes"),
        [
            ("device_only", 3, 7, ()),
            ("layer_sync", 3, 7, (7,)),
            ("layer_sync", 3, 0, (1,)),
            ("asymmetric_pipelining", 3, 7, (4, 4)),
            ("async_overlap", 1, 7, (7,)),
            ("async_overlap", 3, 7, (3, 3, 3)),
            ("async_overlap", 3, 0, (1, 1, 1)),
        ],
    )
    def test_all_host_rows_find_a_place(self, strategy, cohorts, rows, lanes):
        policy = FixedPolicy(strategy=strategy, num_cohorts=cohorts, max_host_requests=9)
        decision = policy.decide(Situation(num_layers=4, host_rows=rows))
        assert decision == Decision(
            strategy=strategy, lanes=lanes, max_host_requests=0 if strategy == "device_only" else 9
        )
        assert sum(lanes) >= rows or strategy == "device_only"


class TestSituation:
    def test_by_hand(self):
        """One on the device, one mid-token on the host, one in its prompt, one that waits."""
        policy = Listening(Decision(strategy="async_overlap", lanes=(1,), max_host_requests=1))
        scheduler = Scheduler(
            capacity(10, 6, page=PAGE, rows=2, host_rows=1, prompt=8),
            num_layers=3,
            policy=policy,
        )
        for number, (prompt, limit) in enumerate([(3, 9), (2, 5), (12, 4), (6, 3)]):
            scheduler.add(Request(id=number, prompt=(1,) * prompt, max_tokens=limit))
        assert policy.told == []
        scheduler.schedule()  # prompts of 0 and 1
        assert policy.told[-1] == Situation(
            num_layers=3,
            prefill_tokens=8,
            waiting=4,
            waiting_tokens=3 + 2 + 12 + 6,
            waiting_first=3,
            waiting_output=9 + 5 + 4 + 3,
            free_device_tokens=40,
            free_host_tokens=24,
        )
        plan = scheduler.schedule()  # 1 is evicted for 2, whose first eight tokens are computed, and departs
        assert [move.request_id for move in plan.evictions] == [1]
        assert [(cohort.first, cohort.last) for cohort in plan.cohorts] == [(0, 0)]
        assert (plan.prefill[0].request_id, len(plan.prefill[0].tokens)) == (2, 8)
        scheduler.schedule()
        assert policy.told[-1] == Situation(
            num_layers=3,
            device_rows=1,
            device_kv_tokens=3 + 2,
            host_rows=1,
            host_kv_tokens=2 + 1,
            # What is left of the prompt of 2, and the one that waits.
            prefill_tokens=8,
            prefill_context=8,
            waiting=1,
            waiting_tokens=6,
            waiting_first=6,
            waiting_output=3,
            # Two of nine, one of five, none of four.
            remaining_tokens=7 + 4 + 4,
            host_remaining_tokens=4,
            free_device_tokens=40 - 4 - 12,
            free_host_tokens=24 - 4,
            mid_token_rows=1,
            oldest_host_wait=1,
        )
