"""Workloads: sizes, arrivals, and moments that the drawn lengths have."""

import statistics
from itertools import pairwise

import pytest

from apex_jax.scheduler.simulation.recorded import read_trace
from apex_jax.scheduler.simulation.workload import PUBLISHED, Job, Moments, arriving, at_once, equal, fitting


def test_equal():
    assert equal(prompt=3, output=4, requests=2) == [Job(arrival_s=0.0, prompt=3, output=4)] * 2


def test_random_arrivals_have_the_rate():
    jobs = arriving(equal(prompt=1, output=1, requests=20_000), rate=8.0, seed=1)
    assert jobs[0].arrival_s == 0
    gaps = [after.arrival_s - before.arrival_s for before, after in pairwise(jobs)]
    assert statistics.mean(gaps) == pytest.approx(1 / 8, rel=0.03)
    # Independent arrivals: the gaps' deviation is their mean.
    assert statistics.pstdev(gaps) == pytest.approx(1 / 8, rel=0.03)
    assert jobs == arriving(equal(prompt=1, output=1, requests=20_000), rate=8.0, seed=1)
    assert at_once(jobs) == equal(prompt=1, output=1, requests=20_000)


@pytest.mark.parametrize("name", PUBLISHED)
def test_drawn_lengths_have_the_moments(name):
    moments = PUBLISHED[name]
    jobs = moments.draw(40_000, seed=3)
    for kind in ("prompt", "output"):
        mean, deviation = getattr(moments, kind)
        lengths = [getattr(job, kind) for job in jobs]
        assert statistics.mean(lengths) == pytest.approx(mean, rel=0.04)
        assert statistics.pstdev(lengths) == pytest.approx(deviation, rel=0.15)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("azure_2023/AzureLLMInferenceTrace_code.csv", "azure-code"),
        ("azure_2023/AzureLLMInferenceTrace_conv.csv", "azure-conversation"),
        ("osc/lengths.json", "summarisation"),
    ],
)
def test_moments_are_those_of_the_data(recorded_loads, file, name):
    jobs = read_trace(recorded_loads / file).jobs
    for kind in ("prompt", "output"):
        lengths = [getattr(job, kind) for job in jobs]
        mean, deviation = getattr(PUBLISHED[name], kind)
        assert statistics.mean(lengths) == pytest.approx(mean, rel=0.01)
        assert statistics.pstdev(lengths) == pytest.approx(deviation, rel=0.01)


def test_fitting():
    jobs = [Job(arrival_s=0, prompt=9, output=1), Job(arrival_s=0, prompt=9, output=2)]
    assert fitting(jobs, tokens=10) == jobs[:1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: equal(prompt=0, output=1, requests=1), "0 prompt tokens; a whole number of at least 1"),
        (lambda: equal(prompt=10.5, output=1, requests=1), "10.5 prompt tokens; a whole number of at least 1"),
        (lambda: Job(arrival_s=True, prompt=1, output=1), "arrives at True s"),
        (lambda: Job(arrival_s=10**400, prompt=1, output=1), "a time of at least 0 and below 1e.12 is needed"),
        (lambda: Job(arrival_s=float("nan"), prompt=1, output=1), "arrives at nan s"),
        (lambda: equal(prompt=1, output=1, requests=0), "requests is 0"),
        (lambda: arriving([], rate=0), "rate is 0"),
        (lambda: arriving([], rate=float("nan")), "rate is nan"),
        (lambda: Moments(prompt=(0.5, 1), output=(1, 1), source=""), "prompt lengths have mean 0.5"),
        (lambda: Moments(prompt=(5, 1), output=(1, -1), source=""), "output lengths have mean 1 and deviation -1"),
        (lambda: PUBLISHED["azure-code"].draw(0), "requests is 0"),
    ],
)
def test_impossible_workloads(call, message):
    with pytest.raises(ValueError, match=message):
        call()
