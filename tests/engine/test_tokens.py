"""A request's tokens depend on its prompt, parameters and seed alone, and are those of the plain model."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from apex_jax import SamplingParams
from apex_jax.execution.sampler import SamplingMode, pack_rows, sample, seed_words

COUNT = 24
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.2, top_p=0.9, top_k=40, min_p=0.01, seed=5, max_tokens=COUNT, ignore_eos=True)
PENALISED = SamplingParams(temperature=0, repetition_penalty=1.4, max_tokens=COUNT, ignore_eos=True)
FREE = SamplingParams(temperature=0.8, seed=9, max_tokens=COUNT, ignore_eos=True)
ALL = {"greedy": GREEDY, "seeded": SEEDED, "penalised": PENALISED, "free": FREE}


@pytest.fixture(scope="module")
def prompt(config):
    return np.random.default_rng(1).integers(0, config.vocab_size, 75).tolist()


@pytest.fixture(scope="module")
def expected(prompt, greedy, dense, config):
    """Tokens of the plain model, recomputed from the whole sequence for each token."""

    def drawn(params):
        choose = jax.jit(functools.partial(sample, mode=SamplingMode.covering([params])))
        ids = list(prompt)
        for step in range(COUNT):
            rows = pack_rows([(params, seed_words(params.seed, 0), step)], eos_token_ids=())
            ids.append(int(choose(dense(ids)[-1:], rows).tokens[0]))
        return ids[len(prompt) :]

    return {
        "greedy": greedy(prompt, COUNT),
        "penalised": greedy(prompt, COUNT, penalty=1.4),
        "seeded": drawn(SEEDED),
        "free": drawn(FREE),
    }


def tokens(outputs):
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


@pytest.mark.parametrize("batched", [16, 32, 128])
def test_alone_whole_or_in_chunks(attention, batched, make, prompt, expected, whole):
    llm = make(attention, max_num_batched_tokens=batched)
    assert llm.attention_name == attention
    for name, params in ALL.items():
        assert tokens(llm.generate(prompt, params, use_tqdm=False)) == [[expected[name]]], name
    whole(llm)


def test_among_fifteen_others(attention, make, prompt, expected, rng, draw, whole):
    llm = make(attention)
    prompts = [draw(rng, length) for length in rng.integers(1, 200, 16)]
    others = [dataclasses.replace(params, seed=i) for i, params in enumerate([*ALL.values()] * 4)]
    for place, (name, params) in zip((0, 7, 15, 3), ALL.items(), strict=True):
        batch = [*prompts[:place], prompt, *prompts[place + 1 :]]
        each = [*others[:place], params, *others[place + 1 :]]
        outputs = llm.generate(batch, each, use_tqdm=False)
        assert [output.prompt_token_ids for output in outputs] == batch
        assert tokens(outputs)[place] == [expected[name]], name
    whole(llm)


def test_after_preemption(attention, make, prompt, expected, rng, draw, whole):
    """Four requests of six pages in the end, in a cache of eleven."""
    llm = make(attention, device_kv_tokens=176, max_num_seqs=4)
    for name, params in ALL.items():
        before = llm.stats().preemptions
        outputs = llm.generate([draw(rng, 70), prompt, prompt, prompt], params, use_tqdm=False)
        assert tokens(outputs)[1:] == [[expected[name]]] * 3, name
        assert llm.stats().preemptions > before
    whole(llm)


def test_completions_of_one_prompt_differ_and_repeat(make, prompt):
    llm = make()
    params = SamplingParams(n=3, temperature=1.0, seed=4, max_tokens=8, ignore_eos=True)
    first, second = llm.generate([prompt, prompt], params, use_tqdm=False)
    assert [c.index for c in first.outputs] == [0, 1, 2]
    assert len({tuple(c.token_ids) for c in first.outputs}) == 3
    assert tokens([first]) == tokens([second])
    single = dataclasses.replace(params, n=1)
    assert tokens(llm.generate(prompt, single, use_tqdm=False)) == [[first.outputs[0].token_ids]]


def test_requests_without_a_seed_differ_and_the_engine_seed_repeats_them(make, prompt):
    params = SamplingParams(temperature=1.0, max_tokens=8, ignore_eos=True)
    runs = [tokens(make(seed=seed).generate([prompt] * 2, params, use_tqdm=False)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "native"), ("bfloat16", "xla"), ("float16", "xla")])
def test_half_types_follow_the_plain_model(dtype, kind, make, prompt, config, weights, dense):
    """Each token is (nearly) the plain model's best after the same tokens: rounding may decide between near equals."""
    llm = make(kind, params=weights, dtype=dtype)
    (output,) = llm.generate(prompt, GREEDY, use_tqdm=False)
    logits = dense([*prompt, *output.outputs[0].token_ids])[len(prompt) - 1 : -1]
    lost = logits.max(-1) - logits[np.arange(COUNT), output.outputs[0].token_ids]
    assert lost.max() < 0.05
