"""Half types: logits of a token are nearly those of float32 arithmetic, and nearly the same by decode and prefill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.execution.attention_backend import device_attention_for
from apex_jax.execution.page_writes import write_tiles
from apex_jax.execution.paged_attention import prefill_attention
from apex_jax.models import LlamaConfig, forward, llama, random_weights

SIZE, LENGTH = 64, 128
CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
)


def prefilled(weights, ids):
    """Return the logits [T, V] of a prompt of whole pages, and each layer's cache."""
    pages = ids.shape[0] // SIZE
    x, turn = llama.embed(CONFIG, weights, ids), llama.rotation(CONFIG, jnp.arange(ids.shape[0]))
    table = jnp.tile(jnp.arange(pages)[None], (pages, 1))
    caches = []
    for layer in weights.layers:
        q, k, v = (a.reshape(pages, SIZE, *a.shape[1:]) for a in llama.pre_attention(CONFIG, layer, x, turn))
        empty = jnp.zeros((pages, CONFIG.num_key_value_heads, 2, SIZE, CONFIG.head_dim), weights.dtype)
        caches.append(write_tiles(empty, jnp.arange(pages), k, v))
        out = prefill_attention(q, caches[-1], table, jnp.arange(pages) * SIZE, one_request=True)
        x = llama.post_attention(CONFIG, layer, x, out.reshape(ids.shape[0], *q.shape[2:]))
    return llama.logits(CONFIG, weights, x), caches


def decoded(weights, caches, token, length):
    """Return the logits [V] of one token that is at position `length - 1`."""
    attention = device_attention_for(jax.devices()[0], CONFIG.head_dim).append_and_attend
    x, turn = llama.embed(CONFIG, weights, token[None]), llama.rotation(CONFIG, (length - 1)[None])
    table = jnp.arange(LENGTH // SIZE, dtype=jnp.int32)[None]
    for layer, cache in zip(weights.layers, caches, strict=True):
        q, k, v = llama.pre_attention(CONFIG, layer, x, turn)
        out, _ = attention(q, k, v, cache, table, length[None], None)
        x = llama.post_attention(CONFIG, layer, x, out)
    return llama.logits(CONFIG, weights, x)[0]


@pytest.mark.parametrize(
    ("dtype", "of_float32", "of_each_other"), [("bfloat16", 0.045, 0.012), ("float16", 0.006, 0.0022)]
)
def test_decode_and_prefill_round_alike(dtype, of_float32, of_each_other):
    """Were the residual stream or the softmax weights rounded too, the two would be at least twice as far apart."""
    weights = random_weights(CONFIG, 0, dtype)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, LENGTH).astype(np.int32)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
    exact = np.asarray(jax.jit(lambda w, t: forward(CONFIG, w, t))(wide, ids[None]))[0]
    logits, caches = jax.jit(prefilled)(weights, ids)
    step = jax.jit(decoded)
    apart, errors = [], []
    for position in range(LENGTH - 24, LENGTH):
        found = np.asarray(step(weights, caches, jnp.int32(ids[position]), jnp.int32(position + 1)))
        apart.append(np.abs(found - np.asarray(logits[position])).max())
        errors.append(np.abs(found - exact[position]).max())
    errors += [np.abs(np.asarray(logits[p]) - exact[p]).max() for p in range(LENGTH - 24, LENGTH)]
    assert np.median(errors) < of_float32
    assert np.median(apart) < of_each_other
