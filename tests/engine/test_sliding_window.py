"""Models whose attention reaches back less far than their contexts: tokens are those of the plain model everywhere."""

import functools

import jax
import numpy as np
import pytest

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
