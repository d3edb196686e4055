"""Writes into paged KV in plain JAX; in place where the cache is donated to the jitted caller.

XLA's CPU backend computes bfloat16 scatters and slice updates in float32: the whole cache is converted and back,
through temporaries of twice its size. There every place is selected from old and new instead: one pass over the cache
that needs no memory. In the other types, and on other devices, only what is written is touched.
"""

import jax
import jax.numpy as jnp
from jax import lax


def set_pages(kv: jax.Array, pages: jax.Array, tiles: jax.Array) -> jax.Array:
    """Return `kv` [P, K, 2, S, H] with whole pages replaced.

    Args:
        kv: the cache of one layer.
        pages: int32 [M], no id twice; an id that does not exist drops the tile.
        tiles: [M, K, 2, S, H] in the type of `kv`.
    """
    pages = jnp.where(pages < 0, kv.shape[0], pages)
    if kv.dtype == jnp.bfloat16:
        return lax.platform_dependent(kv, pages, tiles, cpu=_select_pages, default=_scatter_pages)
    return _scatter_pages(kv, pages, tiles)


def set_tokens(kv: jax.Array, pages: jax.Array, offsets: jax.Array, pairs: jax.Array) -> jax.Array:
    """Return `kv` [P, K, 2, S, H] with single tokens replaced.

    Args:
        kv: the cache of one layer.
        pages: int32 [B]; an id that does not exist drops the token.
        offsets: int32 [B], the token's place in its page, from 0 to S - 1; no place twice.
        pairs: keys and values [B, K, 2, H] in the type of `kv`.
    """
    pages = jnp.where(pages < 0, kv.shape[0], pages)
    if kv.dtype == jnp.bfloat16:
        return lax.platform_dependent(kv, pages, offsets, pairs, cpu=_select_tokens, default=_scatter_tokens)
    return _scatter_tokens(kv, pages, offsets, pairs)


def _scatter_pages(kv: jax.Array, pages: jax.Array, tiles: jax.Array) -> jax.Array:
    return kv.at[pages].set(tiles, mode="drop")


def _select_pages(kv: jax.Array, pages: jax.Array, tiles: jax.Array) -> jax.Array:
    source = jnp.full(kv.shape[0], -1, jnp.int32)
    source = source.at[pages].set(jnp.arange(pages.shape[0], dtype=jnp.int32), mode="drop")
    return jnp.where((source >= 0)[:, None, None, None, None], tiles[jnp.maximum(source, 0)], kv)


def _scatter_tokens(kv: jax.Array, pages: jax.Array, offsets: jax.Array, pairs: jax.Array) -> jax.Array:
    return kv.at[pages, :, :, offsets].set(pairs, mode="drop")


def _select_tokens(kv: jax.Array, pages: jax.Array, offsets: jax.Array, pairs: jax.Array) -> jax.Array:
    source = jnp.full((kv.shape[0], kv.shape[3]), -1, jnp.int32)
    source = source.at[pages, offsets].set(jnp.arange(pages.shape[0], dtype=jnp.int32), mode="drop")
    new = pairs[jnp.maximum(source, 0)].transpose(0, 2, 3, 1, 4)
    return jnp.where((source >= 0)[:, None, None, :, None], new, kv)
