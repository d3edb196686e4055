"""What has to hold on a GPU as on a CPU: these tests run on JAX's default device, whichever that is.

`scripts/gpu_check.sh` runs them on machines with a GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import SamplingParams

pytestmark = pytest.mark.gpu

STRATEGIES = ("device_only", "layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane")
LENGTHS = (5, 17, 33, 48, 3, 20, 61, 9, 40, 16)
COUNT = 24


@pytest.fixture(scope="module")
def prompts(config):
    rng = np.random.default_rng(4)
    return [rng.integers(0, config.vocab_size, length).tolist() for length in LENGTHS]


@pytest.fixture
def run(make, prompts, whole):
    """(strategy, options...) -> the completions; the device has room for three requests, the host for the others."""

    def generate(strategy, *, logprobs=None, **options):
        llm = make(
            page_size=64,
            max_num_batched_tokens=64,
            device_kv_tokens=256,
            host_kv_bytes=2**22,
            max_num_seqs=4,
            max_host_seqs=8,
            strategy=strategy,
            **options,
        )
        params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=logprobs)
        found = [result.outputs[0] for result in llm.generate(prompts, params, use_tqdm=False)]
        hosted = llm.stats().host_tokens
        assert hosted == 0 if strategy == "device_only" else hosted > 2 * COUNT
        whole(llm)
        return found

    return generate


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_float32_gives_the_tokens_of_the_plain_model(strategy, run, prompts, greedy):
    found = [completion.token_ids for completion in run(strategy)]
    assert found == [greedy(prompt, COUNT) for prompt in prompts]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_stay_near_the_plain_model(dtype, run, prompts, weights, dense):
    """Rows on the device and on the host, as near to float32 as the plain model in the same half type is.

    Tokens may differ where two nearly tie, so each step is judged along the tokens that were chosen: by the error of
    their log-probabilities, over all steps, and by how far a choice is from the best.
    """
    halves = jax.tree.map(lambda leaf: leaf.astype(dtype), weights)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    errors, plain, gaps = [], [], []
    for prompt, completion in zip(prompts, run("async_overlap", params=halves, logprobs=1), strict=True):
        ids, steps = [*prompt, *completion.token_ids], slice(len(prompt) - 1, -1)
        exact, rounded = (log_softmax(dense(ids, each)[steps]) for each in (wide, halves))
        for step, (token, entry) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
            errors.append(entry[token].logprob - exact[step, token])
            plain.append(rounded[step, token] - exact[step, token])
            gaps.append(exact[step].max() - exact[step, token])
    deviation = np.std(plain)
    assert np.std(errors) < 1.5 * deviation
    assert abs(np.mean(errors)) < deviation / 2
    # The difference of two errors: of 240 of them, none is likely to lie beyond 4 of its standard deviations.
    assert max(gaps) < 4 * 2**0.5 * 1.5 * deviation


def log_softmax(logits):
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))
