"""Models whose attention reaches back less far than their contexts: tokens are those of the plain model everywhere."""

import functools

import jax
import numpy as np
import pytest

from apex_jax import SamplingParams
from apex_jax.models import forward
from apex_jax.scheduler import FixedPolicy

from .hybrid import HOST_ROWS, OPTIONS, Reference, Restless, check_empty, draw_load, run, settle, unsettle

LONGEST = 160
HYBRID = ("layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane")
LONG = OPTIONS | {"max_model_len": LONGEST, "device_kv_tokens": 256, "host_kv_bytes": 192 * 1024}


@pytest.fixture(scope="module")
def windowed(make, config, weights):
    """(kernel, window) -> engine, and what the plain model gives."""

    @functools.cache
    def get(kernel, window, **options):
        narrow = config.replace(sliding_window=window)
        compiled = jax.jit(functools.partial(forward, narrow))

        def logits(ids):
            padded = np.zeros(LONGEST, np.int32)
            padded[: len(ids)] = ids
            return np.asarray(compiled(weights, padded[None]))[0, : len(ids)]

        llm = make(kernel, config=narrow, strategy="async_overlap", **(LONG | options))
        return llm, Reference(logits, rows=60)

    return get


@pytest.mark.parametrize(("kernel", "window"), [("native", 33), ("xla", 24)])
def test_random_schedules(kernel, window, windowed, config):
    """Chunks, strategies that change, moves that nobody needs, preemptions: contexts of several windows."""
    llm, reference = windowed(kernel, window)
    before = llm.stats()
    for seed in range(4):
        rng = np.random.default_rng((seed, window, kernel == "xla"))
        scheduler = settle(llm)
        if seed % 2:
            scheduler.policy = Restless(rng, config.num_hidden_layers, change=float(rng.uniform(0.05, 1)))
        else:
            strategy = HYBRID[2 + seed // 2]
            scheduler.policy = FixedPolicy(strategy=strategy, num_cohorts=2, max_host_requests=HOST_ROWS)
        unsettle(scheduler, rng, chance=float(rng.uniform(0, 0.4)))
        load = draw_load(rng, 6, config.vocab_size, longest=100, most=60)
        reference.check(run(llm, load, rng, arrive=0.5))
        check_empty(llm)
    after = llm.stats()
    for name in ("host_tokens", "device_tokens", "evictions", "landings", "preemptions"):
        assert getattr(after, name) > getattr(before, name) + 5, name


@pytest.mark.parametrize("strategy", ["device_only", "layer_sync"])
def test_a_long_request_in_a_cache_of_a_window(strategy, windowed):
    """Contexts of ten pages in a cache of four."""
    llm, reference = windowed("native", 33, device_kv_tokens=64, max_num_seqs=1, max_host_seqs=1)
    settle(llm, strategy, 1)
    prompts = [list(range(n)) for n in (70, 3)]
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, seed=0)
    jobs = run(llm, [(prompt, params) for prompt in prompts], np.random.default_rng(0), arrive=1, cancel=0)
    reference.check(jobs)
    check_empty(llm)
    assert (llm.stats().host_tokens > 0) == (strategy != "device_only")
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for job, output in zip(jobs, outputs, strict=True):
        assert job.generations[0].stream.token_ids == output.outputs[0].token_ids


def test_what_does_not_fit(make, config):
    narrow = config.replace(sliding_window=33)
    with pytest.raises(
        ValueError,
        match=r"max_model_len=160 is above what the KV cache holds: device_kv_tokens=48 gives 48 tokens .*; its window "
        r"of 33 tokens would do, beside the 32 prompt tokens of an iteration \(max_num_batched_tokens\)",
    ):
        make(config=narrow, max_model_len=160, device_kv_tokens=48)
    # Without a wish, contexts are as long as what is there.
    assert make(config=narrow, device_kv_tokens=48).max_model_len == 48
    assert make(config=narrow, device_kv_tokens=64).max_model_len == config.max_position_embeddings
