"""What a user of `LLM` with a host tier sees beside tokens: explanations, recordings, where requests lived, closing."""

import numpy as np
import pytest

from apex_jax import SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
TIGHT = {"max_num_seqs": 4, "max_host_seqs": 16, "device_kv_tokens": 192, "host_kv_bytes": 1 << 20}


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(4)
    return [rng.integers(0, 97, 24).tolist() for _ in range(8)]


@pytest.mark.parametrize("strategy", ["auto", "layer_sync"])
def test_explanations_after_every_batch(strategy, make, prompts):
    llm = make(strategy=strategy, **TIGHT)
    for _ in range(3):
        llm.generate(prompts, PARAMS, use_tqdm=False)
        text = llm.explain()
        assert ("device_only" in text) if strategy == "auto" else ("always layer_sync" in text)


def test_results_say_where_requests_lived(make, prompts):
    llm = make(strategy="layer_sync", **TIGHT)
    outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    stats = llm.stats()
    every = [output.metrics for output in outputs]
    assert all(metrics.device_tokens + metrics.host_tokens == 24 for metrics in every)
    assert sum(metrics.host_tokens for metrics in every) == stats.host_tokens > 0
    assert sum(metrics.evictions for metrics in every) == stats.evictions > 0
    assert all((metrics.time_per_host_token is not None) == (metrics.host_tokens > 0) for metrics in every)


def test_one_recording_at_a_time(make, prompts):
    llm = make(strategy="layer_sync", **TIGHT)
    with llm.recording() as recorder:
        with pytest.raises(RuntimeError, match="while another recording is open"), llm.recording():
            pass
        llm.generate(prompts, PARAMS, use_tqdm=False)
    spans = recorder.trace().spans
    assert {"device", "host", "waits", "python"} <= {span.track for span in spans}
    # The host takes up in order what comes over, and each job has its input before it begins.
    jobs = sorted((span for span in spans if span.track == "host"), key=lambda span: span.begin_ns)
    jobs = [span for span in jobs if span.name != "fetch"]
    inputs = sorted((span for span in spans if span.name == "to host"), key=lambda span: span.begin_ns)
    assert {span.track for span in inputs} == {"transfers"}
    assert {span.name for span in jobs} == {"attention", "evict"}
    for came, job in zip(inputs, jobs, strict=True):
        assert came.end_ns <= job.begin_ns
        assert [came.args.get(key) for key in ("layer", "rows", "cohort")] == [
            job.args.get(key) for key in ("layer", "rows", "cohort")
        ]


def test_closing_says_so(make, prompts):
    llm = make(strategy="async_overlap", **TIGHT)
    stream = llm.stream(prompts, PARAMS)
    next(stream)
    llm.close()
    ends = [piece.outputs[0] for piece in stream if piece.outputs[0].finished]
    assert {(end.finish_reason, end.stop_reason) for end in ends} == {("abort", "closed")}
