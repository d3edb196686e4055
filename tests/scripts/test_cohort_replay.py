"""Cohorts in virtual time: every number here is worked out by hand."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "cohort_replay.py"
SPEC = importlib.util.spec_from_file_location("cohort_replay", FILE)
cohort_replay = importlib.util.module_from_spec(SPEC)
# Where dataclasses look for the names in their annotations.
sys.modules["cohort_replay"] = cohort_replay
SPEC.loader.exec_module(cohort_replay)
Scene, at_load, replay, thinned = (getattr(cohort_replay, name) for name in ("Scene", "at_load", "replay", "thinned"))

ONE = Scene(
    boundaries=2, boundary_s=1.0, riding_s=0.0, transfer_s=0.0, job_s=[3.5], cohorts=1, cohort_rows=2, device_rows=1
)
THREE = replace(ONE, boundaries=3, job_s=[2.0], cohorts=3)


def test_the_device_waits():
    """Two iterations a token: pass 0 ends at 1, the job at 4.5; pass 1 is reached at 3 and runs from 4.5 to 5.5."""
    outcome = replay(ONE, "wait", iterations=100)
    assert outcome.device_token_s == pytest.approx(5.5 / 2)
    assert outcome.host_token_s == pytest.approx(5.5)
    assert outcome.tokens_per_s == pytest.approx((2 * 1 + 2) / 5.5)
    assert outcome.waited == pytest.approx(1.5 / 5.5)
    assert outcome.missed == 0


@pytest.mark.parametrize(("policy", "iterations"), [("sit_out_at_best", 3), ("sit_out", 4)])
def test_the_cohort_sits_out(policy, iterations):
    """The job ends at 4.5; pass 1 comes at 3, at 5 (decided at 4, if a pass ahead) and at 7."""
    outcome = replay(ONE, policy, iterations=60)
    assert outcome.device_token_s == pytest.approx(2)
    assert outcome.host_token_s == pytest.approx(2 * iterations)
    assert outcome.tokens_per_s == pytest.approx((iterations * 1 + 2) / (2 * iterations))
    assert outcome.waited == 0
    # Once at boundary 0, else at boundary 1, where all but the last time is missed.
    assert outcome.missed == pytest.approx((iterations - 2) / iterations)


def test_a_job_that_comes_in_time():
    """Job and transfers end just when pass 1 is reached; a pass with a cohort takes half as long again."""
    scene = replace(ONE, job_s=[0.7], transfer_s=0.3, riding_s=0.5)
    for policy in ("wait", "sit_out_at_best"):
        outcome = replay(scene, policy, iterations=100)
        assert outcome.device_token_s == pytest.approx(2.5)
        assert (outcome.waited, outcome.missed) == (0, 0)
    assert scene.iteration_s == 2.5
    assert scene.load == pytest.approx(0.5 * 0.7 / 2.5)


def test_jobs_of_all_cohorts_share_the_host():
    """Two of three cohorts have a job of 2 in each iteration of 3; the device runs as fast as the host does them."""
    assert THREE.load == pytest.approx(4 / 3)
    outcome = replay(THREE, "wait", iterations=300)
    assert outcome.device_token_s == pytest.approx(4)
    assert outcome.host_token_s == pytest.approx(12)
    assert outcome.waited == pytest.approx(1 / 4)


@pytest.mark.parametrize(("policy", "iterations", "missed"), [("sit_out", 4, 1 / 2), ("sit_out_at_best", 3, 1 / 3)])
def test_cohorts_that_meet(policy, iterations, missed):
    """The jobs end at 4.5 and, behind that, at 4.6; pass 1 comes at 5 and at 7.

    Together both ride at 5. One a pass, and decided a pass ahead, the first rides at 7, the second at 9, before which
    the first has begun another token at 8: four iterations later all is the same.
    """
    outcome = replay(replace(ONE, cohorts=2, job_s=[3.5, 0.1]), policy, iterations=120)
    assert outcome.device_token_s == pytest.approx(2)
    assert outcome.host_token_s == pytest.approx(2 * iterations)
    assert outcome.missed == pytest.approx(missed)


def test_jobs_are_taken_in_their_order():
    """Every other token's job is late by 4 s, which the device waits for: 4 and 8 s for two iterations each."""
    outcome = replay(replace(ONE, job_s=[2.0, 6.0]), "wait", iterations=400)
    assert outcome.device_token_s == pytest.approx((4 + 8) / 4)


def test_loads():
    assert at_load(ONE, 1.3).load == pytest.approx(1.3)
    assert at_load(ONE, 1.3).cohort_rows == 2
    fewer = thinned(ONE, ONE.load / 4)
    assert fewer.load == pytest.approx(ONE.load / 4)
    assert (fewer.cohort_rows, fewer.job_s) == (0.5, [3.5 / 4])


def test_no_token_in_time():
    assert replay(replace(ONE, job_s=[1e6]), "sit_out", iterations=10).host_token_s == math.inf


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cohorts": 3}, "cohorts is 3; 1 to 2"),
        ({"job_s": []}, "at least one job"),
        ({"boundary_s": 0.0}, "boundary_s is 0.0"),
        ({"transfer_s": -1.0}, "transfer_s -1.0"),
    ],
)
def test_scenes_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(ONE, **wrong)


def test_no_such_policy():
    with pytest.raises(ValueError, match="'hope'; the policies are wait, sit_out, sit_out_at_best"):
        replay(ONE, "hope", iterations=1)
