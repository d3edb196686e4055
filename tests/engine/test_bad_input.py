"""What cannot be served is refused with the value and what is allowed, before anything starts."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from apex_jax import LLM, EngineOptions, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)

PROMPTS = [
    ([[]], ValueError, r"the prompt \[\] is empty; at least one token is needed"),
    ({"prompt_token_ids": []}, ValueError, "is empty"),
    ("half a pair: \ud83d", ValueError, "is not text"),
    ([[1, 97]], ValueError, "token id 97 is outside the vocabulary of 97 tokens"),
    ([[1], [-1]], ValueError, "token id -1 is outside the vocabulary of 97 tokens"),
    ([1] * 256, ValueError, "the prompt has 256 tokens; with max_model_len=256 at most 255"),
    ("Once", ValueError, "a text prompt needs a tokenizer and this model has none; give token ids"),
    ([{"role": "user", "content": "Hi"}], ValueError, "a chat prompt needs a tokenizer"),
    ({"text": "Hi"}, TypeError, r"'prompt' \(text\) or 'prompt_token_ids', got keys \['text'\]"),
    ([[1, 2.5]], TypeError, "token ids must be integers, got 2.5 of type float"),
    ([[True]], TypeError, "token ids must be integers, got True of type bool"),
    (np.array([0.5]), TypeError, "0.5"),
    (7, TypeError, "must be a text, token ids, chat messages or a list of these, got 7"),
    ([None], TypeError, "must be a text, token ids or chat messages, got None"),
]


@pytest.fixture(autouse=True)
def nothing_started(llm):
    before = (llm.stats(), set(threading.enumerate()))
    yield
    assert (llm.stats(), set(threading.enumerate())) == before


@pytest.mark.parametrize("call", ["generate", "stream"])
@pytest.mark.parametrize(("prompt", "error", "message"), PROMPTS, ids=[str(i) for i in range(len(PROMPTS))])
def test_prompts(prompt, error, message, call, llm):
    with pytest.raises(error, match=message):
        getattr(llm, call)(prompt, GREEDY)


@pytest.mark.parametrize("call", ["generate", "stream"])
def test_one_bad_prompt_among_good_ones(call, llm):
    with pytest.raises(ValueError, match="token id 99 is outside"):
        getattr(llm, call)([[1, 2], [99], [3]], GREEDY)


def test_a_prompt_longer_than_the_cache(make):
    llm = make(device_kv_tokens=40, max_num_seqs=1)
    with pytest.raises(ValueError, match="the prompt has 32 tokens; with max_model_len=32 at most 31"):
        llm.generate([1] * 32, GREEDY, use_tqdm=False)
    assert llm.stats().iterations == 0
    (output,) = llm.generate([1] * 31, GREEDY, use_tqdm=False)
    assert (len(output.outputs[0].token_ids), output.outputs[0].finish_reason) == (1, "length")


PARAMS = [
    ([GREEDY] * 3, ValueError, "3 sampling_params were given for 2 prompts; one for each is needed"),
    ([GREEDY, None], TypeError, "sampling_params must be SamplingParams, got None"),
    ([GREEDY, {"temperature": 0}], TypeError, "must be SamplingParams, got {'temperature': 0}"),
    (0.5, TypeError, "sampling_params must be SamplingParams or a list of them, got 0.5"),
    (dataclasses.replace(GREEDY, stop="end"), ValueError, r"stop strings \('end',\) need a tokenizer"),
    (
        dataclasses.replace(GREEDY, min_tokens=2, stop_token_ids=list(range(70))),
        ValueError,
        "min_tokens allows at most 64 EOS and stop tokens together, got 70",
    ),
]


@pytest.mark.parametrize("call", ["generate", "stream"])
@pytest.mark.parametrize(("params", "error", "message"), PARAMS, ids=[str(i) for i in range(len(PARAMS))])
def test_sampling_params(params, error, message, call, llm):
    with pytest.raises(error, match=message):
        getattr(llm, call)([[1], [2]], params)


OPTIONS = [
    ({"max_num_seqs": 0}, "max_num_seqs must be a positive integer or None, got 0"),
    ({"max_num_batched_tokens": -5}, "max_num_batched_tokens must be a positive integer, got -5"),
    ({"max_num_batched_tokens": None}, "max_num_batched_tokens must be a positive integer, got None"),
    ({"max_model_len": 2.5}, "max_model_len must be a positive integer or None, got 2.5"),
    ({"max_model_len": True}, "max_model_len must be a positive integer or None, got True"),
    ({"device_kv_tokens": -1}, "device_kv_tokens must be a positive integer or None, got -1"),
    ({"device_kv_bytes": 0}, "device_kv_bytes must be a positive integer or None, got 0"),
    ({"device_kv_tokens": 64, "device_kv_bytes": 9999}, "not both: got 64 tokens and 9999 bytes"),
    ({"memory_fraction": 0.0}, "memory_fraction must be above 0 and at most 1, got 0.0"),
    ({"memory_fraction": 1.5}, "memory_fraction must be above 0 and at most 1, got 1.5"),
    ({"memory_fraction": float("nan")}, "memory_fraction must be above 0 and at most 1, got nan"),
    ({"page_size": 48}, "page_size must be one of 16, 32, 64, 128, got 48"),
    ({"num_cohorts": 0, "host_kv_bytes": 1 << 20}, "num_cohorts must be a positive integer or None, got 0"),
    ({"num_cohorts": 2}, "num_cohorts=2 needs a host KV cache: give host_kv_bytes"),
    ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ({"max_time_per_token": 0}, "max_time_per_token must be seconds above 0, or None, got 0"),
    ({"max_time_per_token": float("nan")}, "max_time_per_token must be seconds above 0, or None, got nan"),
    (
        {"max_time_per_token": 0.05},
        "it needs strategy 'auto' and host_kv_bytes, got strategy='auto', host_kv_bytes=None",
    ),
    (
        {"max_time_per_token": 0.05, "strategy": "layer_sync", "host_kv_bytes": 1 << 20},
        "it needs strategy 'auto' and host_kv_bytes, got strategy='layer_sync', host_kv_bytes=1048576",
    ),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=lambda value: str(value)[:40])
def test_options(options, message, config, weights):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**options)
    with pytest.raises(ValueError, match=message):
        LLM.from_params(config, weights, **options)


def test_budgets_of_less_than_a_page(config, weights):
    token = 2 * 2 * 2 * 16 * 4  # keys and values, 2 layers, 2 heads of 16 numbers of 4 bytes
    message = rf"is less than one page of the KV cache: 64 tokens of {token} bytes each"
    with pytest.raises(ValueError, match=f"device_kv_tokens=63 {message}"):
        LLM.from_params(config, weights, device_kv_tokens=63)
    with pytest.raises(ValueError, match=f"device_kv_bytes={64 * token - 1} {message}"):
        LLM.from_params(config, weights, device_kv_bytes=64 * token - 1)
    assert LLM.from_params(config, weights, device_kv_bytes=64 * token).stats().num_pages == 1


def test_a_host_budget_in_which_no_request_can_grow(config, weights):
    page = 2 * 2 * 2 * 16 * 4 * 64
    with pytest.raises(ValueError, match=rf"host_kv_bytes={2 * page - 1} is less than two pages of the host KV cache"):
        LLM.from_params(config, weights, device_kv_tokens=640, host_kv_bytes=2 * page - 1)
    assert LLM.from_params(config, weights, device_kv_tokens=640, host_kv_bytes=2 * page).host_kv_tokens == 128


def test_more_cohorts_than_boundaries(config, weights):
    options = {"device_kv_tokens": 640, "host_kv_bytes": 1 << 20, "strategy": "async_overlap"}
    with pytest.raises(ValueError, match="num_cohorts=4 is above the 3 boundaries of the model's 2 layers"):
        LLM.from_params(config, weights, num_cohorts=4, **options)
    LLM.from_params(config, weights, num_cohorts=3, **options)


def test_unknown_options_are_named(config, weights):
    with pytest.raises(TypeError, match="max_seqs"):
        LLM.from_params(config, weights, max_seqs=4)
    with pytest.raises(TypeError, match="max_seqs"):
        LLM("no such model", max_seqs=4)


def test_a_type_that_is_not_implemented(config, weights):
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16, got int8"):
        LLM.from_params(config, weights, dtype="int8")


def test_a_model_that_does_not_fit_its_configuration(config, weights):
    with pytest.raises(ValueError, match=r"layers"):
        LLM.from_params(dataclasses.replace(config, num_hidden_layers=3), weights)
    with pytest.raises(TypeError, match=r"params must be Weights, .* or a mapping of named arrays, got list"):
        LLM.from_params(config, jax.tree.leaves(weights))
