"""New keys and values into the paged KV cache of a layer, `[P, K, 2, S, H]`; see `paged_attention`."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from ..host_offload import plain_writes, write_pages


def write_tiles(kv: Array, pages: Array, k: Array, v: Array) -> Array:
    """Write whole pages of new keys and values; in place, on a CPU by the native library where it was built.

    Args:
        kv: cache of one layer, [P, K, 2, S, H].
        pages: int32 [M], the page each tile fills; P or more drops the tile.
        k, v: [M, S, K, H].
    """
    tiles = jnp.stack([k, v], axis=2).transpose(0, 3, 2, 1, 4).astype(kv.dtype)
    return replace_pages(kv, pages, tiles)


def replace_pages(kv: Array, pages: Array, tiles: Array) -> Array:
    """Replace whole pages, as `write_tiles` does.

    Args:
        kv: cache of one layer, [P, K, 2, S, H].
        pages: int32 [M], no id twice; P or more drops the tile.
        tiles: [M, K, 2, S, H] in the type of `kv`.
    """
    pages = jnp.where(pages < kv.shape[0], pages, -1)
    return lax.platform_dependent(kv, pages, tiles, cpu=write_pages, default=plain_writes.set_pages)


def write_tokens(kv: Array, table: Array, lengths: Array, k: Array, v: Array) -> Array:
    """Append one token a row at position `lengths - 1`; rows of length 0 write nothing.

    Args:
        kv: cache of one layer, [P, K, 2, S, H].
        table: int32 [B, W].
        lengths: int32 [B], the new token included.
        k, v: [B, K, H].
    """
    page_size = kv.shape[3]
    position = jnp.maximum(lengths - 1, 0)
    page = jnp.take_along_axis(table, (position // page_size)[:, None], axis=1)[:, 0]
    page = jnp.where(lengths > 0, page, kv.shape[0])
    token = jnp.stack([k, v], axis=2).astype(kv.dtype)
    return plain_writes.set_tokens(kv, page, position % page_size, token)
