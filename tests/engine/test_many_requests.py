"""What an iteration costs in Python does not depend on how many requests wait."""

import sys

import pytest

from apex_jax import LLM, SamplingParams

FIRST, LAST = 60, 120


class Enough(Exception):
    pass


def calls(llm, requests, serve):
    """Return how many Python functions are called from one iteration to another, while most requests wait."""
    prompts = [{"prompt_token_ids": [5] * 8}] * requests
    step, taken, called = llm.engine.step, 0, 0

    def count(frame, event, argument):
        nonlocal called
        called += event in ("call", "c_call")

    def counted():
        nonlocal taken
        taken += 1
        if taken == FIRST:
            sys.setprofile(count)
        elif taken == LAST:
            sys.setprofile(None)
            raise Enough
        step()

    llm.engine.step = counted
    try:
        with pytest.raises(Enough):
            serve(prompts, SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
    finally:
        sys.setprofile(None)
        llm.engine.step = step
    return called


@pytest.mark.parametrize("strategy", ["device_only", "async_overlap"])
def test_thousands_wait(strategy, config, weights):
    sizes = {"device_kv_tokens": 512, "max_num_seqs": 8, "max_num_batched_tokens": 32, "host_kv_bytes": 1 << 20}
    llm = LLM.from_params(config, weights, strategy=strategy, **sizes)

    def generate(prompts, params):
        llm.generate(prompts, params, use_tqdm=False)

    def stream(prompts, params):
        for _ in llm.stream(prompts, params):
            pass

    calls(llm, 150, generate)
    for serve in (generate, stream):
        few, many = calls(llm, 150, serve), calls(llm, 6000, serve)
        assert many < 1.1 * few
    llm.close()
