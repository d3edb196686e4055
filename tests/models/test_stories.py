"""A real model from its own files: stories260K must tell its story."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.models import forward, load_model

compiled = jax.jit(forward, static_argnums=0)


@pytest.fixture(scope="module")
def model(stories):
    return load_model(stories)


def test_logits_and_greedy_ids(model, stories):
    with np.load(stories / "golden_greedy.npz") as golden:
        ids, logits = golden["ids"], golden["logits"]
    found = compiled(model.config, model.weights, jnp.asarray(ids)[None, :-1])
    np.testing.assert_allclose(np.asarray(found)[0], logits, rtol=0, atol=1e-3)

    told = np.zeros(len(ids) - 1, np.int32)
    told[0] = model.config.bos_token_id
    last = told[0]
    for length in range(1, len(ids)):
        step = compiled(model.config, model.weights, jnp.asarray(told)[None])
        last = int(np.asarray(step)[0, length - 1].argmax())
        if length < len(told):
            told[length] = last
    np.testing.assert_array_equal([*told, last], ids)


def test_text(model, stories):
    with np.load(stories / "golden_greedy.npz") as golden:
        ids = golden["ids"].tolist()
    text = (stories / "golden_greedy.txt").read_text(encoding="utf-8")
    assert model.tokenizer.decode(ids) == text
    stream = model.tokenizer.detokenizer()
    assert "".join(stream.push([token]) for token in ids) + stream.finish() == text


def test_generation_config_ends_the_story(model, stories):
    assert model.config.eos_token_ids == (1, 2)
    assert str(model.weights.dtype) == "float32"
