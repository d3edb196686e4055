"""Tokens are those of the plain model, wherever a request lives and whatever strategy moves it on."""

import dataclasses
import functools
import itertools
import threading

import jax
import numpy as np
import pytest

from apex_jax import LLM, SamplingParams
from apex_jax.models import forward, random_weights
from apex_jax.scheduler import FixedPolicy

from .hybrid import HOST_ROWS, OPTIONS, Reference, Restless, check_empty, draw_load, run, settle, unsettle

LAYERS = 2
HYBRID = ("layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane")


@pytest.fixture(scope="module")
def reference(dense):
    return Reference(dense)


@pytest.fixture(scope="module")
def hybrid(make):
    made = {}

    def get(attention, **options):
        key = (attention, *options.items())
        if key not in made:
            made[key] = make(attention, strategy="async_overlap", **(OPTIONS | options))
        return made[key]

    return get


@pytest.fixture(scope="module")
def deep(make, config):
    """(attention) -> engine of a model with six layers, enough for a program of several, and what the model gives."""
    six = dataclasses.replace(config, num_hidden_layers=6)
    params = random_weights(six, 5, "float32")
    reference = Reference(of_model(six, params))
    options = OPTIONS | {"host_kv_bytes": 3 * OPTIONS["host_kv_bytes"], "strategy": "async_overlap"}
    return functools.cache(lambda attention: (make(attention, config=six, params=params, **options), reference))


def of_model(config, params):
    """(token ids) -> float32 logits [T, V] of the plain model."""
    forwarded = jax.jit(functools.partial(forward, config))

    def logits(ids):
        padded = np.zeros(64, np.int32)
        padded[: len(ids)] = ids
        return np.asarray(forwarded(params, padded[None]))[0, : len(ids)]

    return logits


@pytest.mark.parametrize("block", range(8))
def test_random_schedules(attention, block, hybrid, deep, reference, config):
    """25 random schedules: arrivals, cancellations, strategies that change or stay, moves that nobody needs.

    No two of all blocks are the same, and one attention has 200 of them.
    """
    llm, reference = (hybrid(attention), reference) if block < 6 else deep(attention)
    layers = llm.config.num_hidden_layers
    before = llm.stats()
    for seed in range(25):
        rng = np.random.default_rng((block + 8 * (attention == "xla"), seed))
        scheduler = settle(llm)
        if seed % 2:
            scheduler.policy = Restless(rng, layers, change=float(rng.uniform(0.05, 1)))
        else:
            strategy = HYBRID[rng.integers(len(HYBRID))]
            cohorts = int(rng.integers(1, layers + 3))
            scheduler.policy = FixedPolicy(
                strategy=strategy, num_cohorts=cohorts, max_host_requests=int(rng.integers(1, HOST_ROWS + 1))
            )
        if seed % 5:
            unsettle(scheduler, rng, chance=float(rng.uniform(0.1, 0.8)))
        load = draw_load(rng, int(rng.integers(2, 9)), config.vocab_size)
        jobs = run(llm, load, rng, arrive=float(rng.uniform(0.1, 1)), cancel=0.02 * (seed % 3))
        reference.check(jobs)
        check_empty(llm)
    after = llm.stats()
    for name in ("host_tokens", "device_tokens", "evictions", "landings", "preemptions"):
        assert getattr(after, name) > getattr(before, name) + 20, name


@pytest.mark.parametrize(
    ("strategy", "cohorts"),
    [
        ("layer_sync", 1),
        ("asymmetric_pipelining", 2),
        *itertools.product(["async_overlap", "fast_lane"], range(1, LAYERS + 3)),
    ],
)
def test_every_strategy_and_number_of_cohorts(strategy, cohorts, attention, hybrid, reference, config):
    llm = hybrid(attention)
    settle(llm, strategy, cohorts)
    before = llm.stats()
    rng = np.random.default_rng(cohorts)
    jobs = run(llm, draw_load(rng, 12, config.vocab_size, most=24), rng, arrive=1, cancel=0)
    reference.check(jobs)
    check_empty(llm)
    assert llm.stats().host_tokens > before.host_tokens + 10


@pytest.mark.parametrize("cohorts", [1, 2, 3])
def test_layers_that_share_a_program(cohorts, make, config):
    """Eleven layers are enough for programs of several, before, between and behind the cohorts."""
    deep = dataclasses.replace(config, num_hidden_layers=11)
    params = random_weights(deep, 5, "float32")
    llm = make(
        config=deep,
        params=params,
        strategy="async_overlap",
        **(OPTIONS | {"device_kv_tokens": 64, "host_kv_bytes": 512 * 1024}),
    )
    settle(llm, "async_overlap", cohorts)
    with llm.recording() as recorder:
        rng = np.random.default_rng(cohorts)
        jobs = run(llm, draw_load(rng, 16, config.vocab_size, most=24), rng, arrive=1, cancel=0)
    Reference(of_model(deep, params)).check(jobs)
    check_empty(llm)
    assert llm.stats().host_tokens > 10
    spans = [span.args for span in recorder.trace().spans if span.track == "device" and span.name == "layer"]
    assert {args["last_layer"] - args["layer"] for args in spans} == {0, 3}


@pytest.mark.parametrize("page_size", [32, 64, 128])
def test_every_page_size(page_size, hybrid, reference, config):
    llm = hybrid(
        None,
        page_size=page_size,
        max_num_seqs=1,
        max_host_seqs=2,
        max_num_batched_tokens=page_size,
        max_model_len=2 * page_size,
        device_kv_tokens=2 * page_size,
        host_kv_bytes=6 * page_size * 512,
    )
    before = llm.stats()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scheduler = settle(llm, HYBRID[seed % 3])
        if seed > 5:
            scheduler.policy = Restless(rng, LAYERS)
        unsettle(scheduler, rng, chance=0.1 * (seed % 2))
        longest = min(llm.max_model_len - 12, page_size + 40)
        reference.check(run(llm, draw_load(rng, 6, config.vocab_size, longest=longest, kinds=2), rng))
        check_empty(llm)
    assert llm.stats().host_tokens > before.host_tokens + 20


@pytest.fixture(scope="module", params=["device_only", *HYBRID])
def public(request, make):
    return make(**(OPTIONS | {"strategy": request.param}))


class TestFromOutside:
    """Through the public calls alone."""

    def test_generate(self, public, reference, config):
        rng = np.random.default_rng(3)
        load = draw_load(rng, 14, config.vocab_size, most=20)
        outputs = public.generate([prompt for prompt, _ in load], [params for _, params in load], use_tqdm=False)
        for (prompt, params), output in zip(load, outputs, strict=True):
            assert len(output.outputs) == params.n
            for completion in output.outputs:
                found = completion.token_ids
                assert len(found) == params.max_tokens
                assert found == reference.tokens(prompt, params, completion.index, found)
        stats = public.stats()
        assert (stats.host_tokens > 0) == (public.strategy != "device_only")
        assert stats.device_tokens + stats.host_tokens >= stats.output_tokens
        check_empty(public)

    def test_streams_and_batches_of_several_threads(self, public, reference, config):
        loads = [draw_load(np.random.default_rng(10 + i), 5, config.vocab_size) for i in range(4)]
        found = {}

        def work(i):
            prompts, params = [prompt for prompt, _ in loads[i]], [params for _, params in loads[i]]
            parts = {}
            if i % 2:
                for number, output in enumerate(public.generate(prompts, params, use_tqdm=False)):
                    parts |= {(number, completion.index): completion.token_ids for completion in output.outputs}
            else:
                for output in public.stream(prompts, params):
                    (completion,) = output.outputs
                    parts.setdefault((int(output.request_id), completion.index), []).extend(completion.token_ids)
                first = min(number for number, _ in parts)
                parts = {(number - first, index): tokens for (number, index), tokens in parts.items()}
            found[i] = parts

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, load in enumerate(loads):
            assert len(found[i]) == sum(params.n for _, params in load)
            for (number, index), tokens in found[i].items():
                prompt, params = load[number]
                assert len(tokens) == params.max_tokens
                assert tokens == reference.tokens(prompt, params, index, tokens)
        check_empty(public)


@pytest.mark.parametrize("strategy", ["device_only", *HYBRID])
def test_a_real_model_tells_its_story(strategy, stories):
    """Five requests begin the same story at different places, in a device cache for one of them and a half."""
    llm = LLM(
        stories,
        page_size=16,
        max_num_seqs=1,
        max_host_seqs=4,
        max_num_batched_tokens=16,
        device_kv_tokens=256,
        host_kv_bytes=1 << 20,
        strategy=strategy,
    )
    with np.load(stories / "golden_greedy.npz") as golden:
        ids = golden["ids"].tolist()
    starts = (1, 20, 47, 90, 130)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    outputs = llm.generate([ids[:start] for start in starts], params, use_tqdm=False)
    for start, output in zip(starts, outputs, strict=True):
        assert output.outputs[0].token_ids == ids[start : start + 40]
    assert (llm.stats().host_tokens > 40) == (strategy != "device_only")
    check_empty(llm)
