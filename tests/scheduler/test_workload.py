"""Workloads: sizes, arrivals, moments that the drawn lengths have, and traces with their mistakes."""

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from apex_jax.scheduler.workload import PUBLISHED, Job, Moments, arriving, at_once, equal, fitting, read_trace

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def shared():
    if not SHARED.is_dir():
        pytest.skip("the shared data are not beside the repository")
    return SHARED


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
def test_moments_are_those_of_the_data(shared, file, name):
    jobs = read_trace(shared / file)
    for kind in ("prompt", "output"):
        lengths = [getattr(job, kind) for job in jobs]
        mean, deviation = getattr(PUBLISHED[name], kind)
        assert statistics.mean(lengths) == pytest.approx(mean, rel=0.01)
        assert statistics.pstdev(lengths) == pytest.approx(deviation, rel=0.01)


def test_azure_form(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(
        HEADER
        + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.1805900,5,0\n2023-11-16 18:15:48.6805900,7,2\n"
    )
    first, second = read_trace(file)
    assert (first.arrival_s, first.prompt, first.output) == (0.0, 374, 44)
    assert (second.arrival_s, second.prompt, second.output) == (pytest.approx(2.0), 7, 2)


def test_json_form(tmp_path):
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps([{"prompt": 3, "max_tokens": 2, "arrival_s": 1.5}, {"prompt": 4, "max_tokens": 1}]))
    assert read_trace(file) == [
        Job(arrival_s=0.0, prompt=4, output=1),
        Job(arrival_s=1.5, prompt=3, output=2),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "has no column TIMESTAMP"),
        ("a.csv", "TIMESTAMP,ContextTokens\n", "has no column GeneratedTokens"),
        ("a.csv", HEADER, "holds no request with output"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,x,1\n", "line 2: invalid literal"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,1,1\nyesterday,1,1\n", "line 3: Invalid isoformat"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,0,1\n", "line 2: a request has 0 prompt tokens"),
        ("a.csv", HEADER + "2023-11-16 18:15:46,1,-1\n", "line 2: a request has -1 output tokens"),
        ("a.csv", HEADER + "2023-11-16 18:15:46\n", "line 2: "),
        ("a.json", "[", "is not JSON"),
        ("a.json", "{}", "holds a JSON dict; a list of requests is needed"),
        ("a.json", "[1]", "request 0: "),
        ("a.json", '[{"max_tokens": 1}]', "request 0: no 'prompt'"),
        ("a.json", '[{"prompt": 1.5, "max_tokens": 1}]', "request 0: a request has 1.5 prompt tokens"),
        ("a.json", '[{"prompt": 1, "max_tokens": 1, "arrival_s": -1}]', "request 0: a request arrives at -1 s"),
        ("a.json", '[{"prompt": 1, "max_tokens": 1, "arrival_s": "now"}]', "request 0: a request arrives at 'now'"),
    ],
)
def test_malformed_traces(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_trace(file)
    assert str(file) in str(caught.value)


def test_missing_trace(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none.csv")


def test_fitting():
    jobs = [Job(arrival_s=0, prompt=9, output=1), Job(arrival_s=0, prompt=9, output=2)]
    assert fitting(jobs, tokens=10) == jobs[:1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: equal(prompt=0, output=1, requests=1), "0 prompt tokens"),
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
