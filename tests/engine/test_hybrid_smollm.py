"""SmolLM2 with its real weights: thirty layers, tokens of requests on both sides as the plain model gives them."""

import functools

import jax
import numpy as np
import pytest

from apex_jax import LLM, SamplingParams
from apex_jax.models import forward, load_model
from apex_jax.models.loading.registry import REGISTERED, cache_folder

from .hybrid import Reference, check_empty

FILE = cache_folder() / REGISTERED["smollm2-135m-instruct"].file
NAMES = ("Ann", "Ben", "Cas", "Dan", "Eve", "Flo", "Gus", "Hal", "Ida", "Jon", "Kit", "Lou", "Max")
BEGINNINGS = [f"{name} went to the" for name in NAMES]


@pytest.fixture(scope="module")
def model():
    if not FILE.is_file():
        pytest.skip(f"{FILE.name} is not in the cache folder {FILE.parent}")
    return load_model(str(FILE), dtype="float32")


@pytest.fixture(scope="module")
def reference(model):
    compiled = jax.jit(functools.partial(forward, model.config))

    # All strategies ask for the same.
    @functools.cache
    def logits(ids):
        padded = np.zeros(16 if len(ids) <= 16 else 96, np.int32)
        padded[: len(ids)] = ids
        return np.asarray(compiled(model.weights, padded[None]))[0, : len(ids)]

    return Reference(lambda ids: logits(tuple(ids)))


@pytest.mark.parametrize(
    ("strategy", "longest"),
    [
        ("device_only", 8),
        ("layer_sync", 8),
        ("asymmetric_pipelining", 8),
        # Where the last one stays on the device long enough for the others' tokens, one layer an iteration.
        ("async_overlap", 70),
        ("auto", 8),
    ],
)
def test_tokens_are_those_of_the_plain_model(strategy, longest, model, reference):
    llm = LLM.from_params(
        model.config,
        model.weights,
        tokenizer=model.tokenizer,
        page_size=16,
        max_num_seqs=1,
        max_host_seqs=12,
        max_num_batched_tokens=16,
        max_model_len=96,
        device_kv_tokens=96,
        host_kv_bytes=64 << 20,
        strategy=strategy,
        num_cohorts=3,
    )
    lengths = [3] * (len(BEGINNINGS) - 1) + [longest]
    params = [
        SamplingParams(temperature=0.8 * (index % 2), seed=index, max_tokens=count, ignore_eos=True)
        for index, count in enumerate(lengths)
    ]
    outputs = llm.generate(BEGINNINGS, params, use_tqdm=False)
    for each, count, output in zip(params, lengths, outputs, strict=True):
        found = output.outputs[0].token_ids
        assert len(found) == count
        assert found == reference.tokens(output.prompt_token_ids, each, 0, found)
    if strategy not in ("device_only", "auto"):
        assert llm.stats().host_tokens >= 20
    check_empty(llm)
