"""The model in its plainest form: whole sequences, dense causal attention, no cache. To read, and to test against."""

import functools
import math

import jax
import jax.numpy as jnp

from .config import LlamaConfig
from .llama import Weights, embed, logits, post_attention, pre_attention, rotation


def forward(config: LlamaConfig, weights: Weights, tokens: jax.Array) -> jax.Array:
    """Return float32 logits [B, T, V] of token ids int32 [B, T], position 0 first.

    Compute takes O(T * T) memory a layer.
    """
    return jax.vmap(functools.partial(_sequence, config, weights))(tokens)


def _sequence(config: LlamaConfig, weights: Weights, tokens: jax.Array) -> jax.Array:
    turn = rotation(config, jnp.arange(tokens.shape[0], dtype=jnp.int32))
    x = embed(config, weights, tokens)
    for layer in weights.layers:
        q, k, v = pre_attention(config, layer, x, turn)
        x = post_attention(config, layer, x, causal_attention(q, k, v, window=config.sliding_window))
    return logits(config, weights, x)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None = None) -> jax.Array:
    """Attend from every token to itself and those before it.

    Args:
        q: [T, N, H], unscaled.
        k, v: [T, K, H]; query head n reads key/value head n // G.
        window: tokens that each attends to at most, its own included; None for all.

    Returns:
        float32 [T, N, H].
    """
    length, heads, width = q.shape
    grouped = q.reshape(length, k.shape[1], heads // k.shape[1], width)
    highest = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("TKGH,SKH->KGTS", grouped, k, precision=highest, preferred_element_type=jnp.float32)
    visible = jnp.tril(jnp.ones((length, length), bool))
    if window is not None:
        visible &= ~jnp.tril(visible, -window)
    visible = visible[None, None]
    scores = jnp.where(visible, scores * jnp.float32(1 / math.sqrt(width)), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("KGTS,SKH->TKGH", weights, v.astype(jnp.float32), precision=highest)
    return mixed.reshape(length, heads, width)
