"""Biases, penalties on output, allowed tokens and bad words, against a loop of numpy over the plain model."""

import copy
import pickle

import numpy as np
import pytest

from apex_jax import SamplingParams

PROMPT = [5, 17, 40]
HYBRID = {"max_num_seqs": 3, "max_host_seqs": 4, "device_kv_tokens": 48, "host_kv_bytes": 1 << 20}
WORDS = ["e", "ab", "abc", " q"]
"""Of the tokenizer below: one token, two and three, and one that begins with a space."""


@pytest.fixture(scope="module")
def tokenizer():
    """Characters of ASCII: token i is chr(31 + i), from 1 to 95; 0 and 96 are special. EOS (11) is an asterisk."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, **{chr(31 + index): index for index in range(1, 96)}, "<x>": 96}
    model = Tokenizer(models.BPE(vocabulary, []))
    model.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", unk_token="<x>")


def tokens_of(text):
    return [ord(character) - 31 for character in text]


def reference(dense, prompt, params, *, eos=()):
    """Return the greedy tokens of the plain model with everything applied in float64, as vLLM orders it."""
    output = []
    while len(output) < params.max_tokens:
        logits = dense([*prompt, *output])[-1].astype(np.float64)
        if params.allowed_token_ids is not None:
            logits[np.setdiff1d(np.arange(len(logits)), params.allowed_token_ids)] = -np.inf
        for word in params.bad_words:
            ids = tokens_of(word)
            if output[len(output) - len(ids) + 1 :] == ids[:-1] or len(ids) == 1:
                logits[ids[-1]] = -np.inf
        for token, bias in (params.logit_bias or {}).items():
            logits[token] += bias
        for token in set(prompt) | set(output):
            logits[token] *= params.repetition_penalty ** (-1 if logits[token] > 0 else 1)
        for token in set(output):
            logits[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
        output.append(int(logits.argmax()))
        if output[-1] in eos:
            break
    return output


def favourites(dense, count=4):
    """Return tokens that the plain model gives after the prompt."""
    return np.argsort(dense(PROMPT)[-1])[::-1][:count].tolist()


CASES = {
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.7},
    "rewarded": {"frequency_penalty": -0.4, "presence_penalty": -1.0},
    "bias": {"logit_bias": {7: 1.5, 60: 2, 61: -100}},
    "allowed": {"allowed_token_ids": [*range(20, 50), 3]},
    "words": {"bad_words": WORDS, "logit_bias": dict.fromkeys(tokens_of("abcq "), 3.0)},
    "all": {
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.3,
        "logit_bias": dict.fromkeys(tokens_of("abc"), 1.0),
        "bad_words": ["ab"],
        "allowed_token_ids": [*range(40, 97)],
    },
}


def params_of(case, **more):
    return SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, **CASES[case], **more)


@pytest.fixture(scope="module")
def expected(dense):
    return {case: reference(dense, PROMPT, params_of(case)) for case in CASES}


def test_the_cases_change_something(dense, expected, greedy):
    plain = greedy(PROMPT, 20)
    assert all(tokens != plain for tokens in expected.values())


def outputs(llm, params, prompt=PROMPT):
    return [result.outputs[0].token_ids for result in llm.generate([prompt] * len(params), params, use_tqdm=False)]


def test_greedy_tokens(make, tokenizer, expected, greedy):
    """All at once, with one that asks for nothing among them, and one after another."""
    llm = make(tokenizer=tokenizer)
    batch = [params_of(case) for case in CASES]
    free = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    assert outputs(llm, [*batch, free]) == [*expected.values(), greedy(PROMPT, 20)]
    assert [outputs(llm, [params])[0] for params in batch[-2:]] == list(expected.values())[-2:]


@pytest.mark.parametrize("strategy", ["device_only", "layer_sync", "asymmetric_pipelining", "async_overlap"])
def test_on_either_side_and_after_preemptions(strategy, make, tokenizer, expected, greedy, whole):
    llm = make(tokenizer=tokenizer, strategy=strategy, **HYBRID)
    batch = [params_of(case) for case in CASES] * 2
    free = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    found = outputs(llm, [*batch, free, free])
    assert found == [*expected.values()] * 2 + [greedy(PROMPT, 20)] * 2
    stats = llm.stats()
    assert (stats.preemptions if strategy == "device_only" else stats.host_tokens) > 0
    whole(llm)


def test_seeded_tokens_do_not_depend_on_neighbours(make, tokenizer):
    llm = make(tokenizer=tokenizer)
    batch = [
        SamplingParams(seed=3, n=2, max_tokens=16, ignore_eos=True, **(CASES[case] if case else {}))
        for case in (*CASES, None)
    ]
    together = [[o.token_ids for o in r.outputs] for r in llm.generate([PROMPT] * len(batch), batch, use_tqdm=False)]
    alone = [[o.token_ids for o in llm.generate([PROMPT], params, use_tqdm=False)[0].outputs] for params in batch]
    assert together == alone
    sent = [pickle.loads(pickle.dumps(copy.deepcopy(params))) for params in batch]
    assert sent == batch
    streamed = [[], []]
    for news in llm.stream([PROMPT], sent[2]):
        streamed[news.outputs[0].index] += news.outputs[0].token_ids
    assert streamed == alone[2]


def test_logprobs_are_the_models_own(make, dense):
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2, logit_bias={7: 50})
    [result] = make().generate([PROMPT], params, use_tqdm=False)
    assert result.outputs[0].token_ids == [7] * 5
    logits = dense([*PROMPT, 7, 7])[-1].astype(np.float64)
    entry = result.outputs[0].logprobs[2]
    assert entry[7].logprob == pytest.approx(logits[7] - np.log(np.exp(logits).sum()), abs=1e-4)
    assert set(entry) == {7, *np.argsort(logits)[::-1][:2].tolist()}


def test_min_tokens_and_eos(make, dense):
    """EOS is in favour, and not drawn before min_tokens; nor ever where it is not allowed."""
    llm = make()
    favoured = SamplingParams(temperature=0, max_tokens=6, min_tokens=3, logit_bias={11: 100})
    [result] = llm.generate([PROMPT], favoured, use_tqdm=False)
    assert (len(result.outputs[0].token_ids), result.outputs[0].finish_reason) == (4, "stop")
    without = SamplingParams(temperature=0, max_tokens=6, logit_bias={11: 100}, allowed_token_ids=[1, 2])
    [result] = llm.generate([PROMPT], without, use_tqdm=False)
    assert set(result.outputs[0].token_ids) <= {1, 2}
    assert result.outputs[0].finish_reason == "length"


def test_a_bad_word_with_nothing_beside_it_ends_its_request_alone(make, tokenizer, greedy):
    """After an `a` only a `b` would be allowed, and may not come."""
    llm = make(tokenizer=tokenizer)
    stuck = SamplingParams(temperature=0, max_tokens=6, allowed_token_ids=tokens_of("ab"), bad_words=["ab", "aa", "b"])
    free = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    found = [result.outputs[0] for result in llm.generate([PROMPT] * 2, [stuck, free], use_tqdm=False)]
    assert found[0].token_ids == tokens_of("a")
    assert found[0].finish_reason == "abort"
    assert "leave no token to draw" in found[0].stop_reason
    assert found[1].token_ids == greedy(PROMPT, 6)


REFUSED = [
    ({"logit_bias": {97: 1}}, "logit_bias has token id 97, outside the vocabulary of 97 tokens"),
    ({"allowed_token_ids": [3, 1000]}, "allowed_token_ids has token id 1000, outside the vocabulary of 97"),
    (
        {"allowed_token_ids": [66], "bad_words": ["a"]},
        r"no token is left to draw with allowed_token_ids=\(66,\), bad_w",
    ),
    ({"allowed_token_ids": [11], "min_tokens": 1}, "no token is left to draw .*min_tokens=1"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_refused_before_anything_starts(values, message, make, tokenizer, whole):
    llm = make(tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        llm.generate([PROMPT, PROMPT], [SamplingParams(), SamplingParams(**values)], use_tqdm=False)
    with pytest.raises(ValueError, match=message):
        llm.stream([PROMPT], SamplingParams(**values))
    assert llm.stats().iterations == 0
    whole(llm)


def test_bad_words_need_a_tokenizer(llm):
    with pytest.raises(ValueError, match=r"bad_words \('ab',\) need a tokenizer and this model has none"):
        llm.generate([PROMPT], SamplingParams(bad_words=["ab"]), use_tqdm=False)
