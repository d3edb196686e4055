"""The device programs of an iteration: pure functions over weights, caches and packed integer batches.

An iteration that only decodes is one whole-step program, so that Python dispatches once. An iteration with prompt
tokens runs `embed_mixed`, then `layer_mixed` once per layer (one compilation serves all layers), since its compute
hides the dispatch. Both end in `sample_rows`, which takes the rows that need a token through the head and the sampler
and leaves the tokens on the device, where the next iteration reads them. Its shapes depend on the number of these rows
alone (`take` picks them out of an iteration with prompt tokens), because there are many sampling modes to compile.

Letters beside the project's: M tiles of S prompt tokens (a tile fills one KV page), R rows that sample, W page table
width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .device_attention import prefill_attention, write_tiles
from .models import llama
from .models.config import LlamaConfig
from .models.llama import Weights
from .sampling import Sampled, SamplingMode, SamplingRows, sample

LayerWeights = Any
Caches = tuple[Array, ...]

ROW_COLUMNS = 2
"""Columns of a decode batch before the page table."""

TILE_COLUMNS = 2
"""Columns of a tile batch before the tokens and the page table."""

DecodeAttention = Callable[[Array, Array, Array, Array, Array, Array], tuple[Array, Array]]
"""(q [B, N, H], k [B, K, H], v [B, K, H], kv [P, K, 2, S, H], table [B, W], lengths [B]) -> (attention [B, N, H], kv).

Appends k and v at position `lengths - 1` and attends over `lengths` tokens; rows of length 0 are padding."""


class DecodeBatch(NamedTuple):
    """Columns of int32 [B, 2 + W]; padding rows have length 0 and the spare slot."""

    slots: Array
    lengths: Array
    table: Array

    @classmethod
    def unpack(cls, packed: Array) -> DecodeBatch:
        return cls(packed[:, 0], packed[:, 1], packed[:, ROW_COLUMNS:])


class TileBatch(NamedTuple):
    """Columns of int32 [M, 2 + S + W]; padding tiles have page P, which is not there."""

    starts: Array
    pages: Array
    tokens: Array
    table: Array

    @classmethod
    def unpack(cls, packed: Array, page_size: int) -> TileBatch:
        end = TILE_COLUMNS + page_size
        return cls(packed[:, 0], packed[:, 1], packed[:, TILE_COLUMNS:end], packed[:, end:])


class SampleBatch(NamedTuple):
    """Columns of int32 [R, 2]; padding rows have the spare slot, so that their sample goes nowhere."""

    slots: Array
    steps: Array

    @classmethod
    def unpack(cls, packed: Array) -> SampleBatch:
        return cls(packed[:, 0], packed[:, 1])


@dataclass(frozen=True)
class Programs:
    """Jitted programs for one model, device attention and page size; each compiles once for every shape of its
    batch."""

    decode_step: Callable[..., tuple[Array, Caches]]
    embed_mixed: Callable[..., tuple[Array, Array]]
    layer_mixed: Callable[..., tuple[Array, Array]]
    take: Callable[[Array, Any], Array]
    sample: Callable[..., tuple[Sampled, Array, Array | None]]
    mark_prompt: Callable[[Array, Any, Any], Array]


def build_programs(config: LlamaConfig, attention: DecodeAttention, page_size: int) -> Programs:
    """Return the device programs.

    Args:
        config: the model.
        attention: append and decode attention over the paged cache.
        page_size: tokens a KV page and a prompt tile hold.
    """

    def decode_step(weights: Weights, caches: Caches, last_token: Array, packed: Array) -> tuple[Array, Caches]:
        rows = DecodeBatch.unpack(packed)
        x = llama.embed(config, weights, last_token[rows.slots])
        turn = llama.rotation(config, jnp.maximum(rows.lengths - 1, 0))
        new_caches = []
        for layer, cache in zip(weights.layers, caches, strict=True):
            q, k, v = llama.pre_attention(config, layer, x, turn)
            out, cache = attention(q, k, v, cache, rows.table, rows.lengths)
            x = llama.post_attention(config, layer, x, out)
            new_caches.append(cache)
        return x, tuple(new_caches)

    def embed_mixed(
        weights: Weights, last_token: Array, packed_tiles: Array, packed_rows: Array
    ) -> tuple[Array, Array]:
        tiles = TileBatch.unpack(packed_tiles, page_size)
        rows = DecodeBatch.unpack(packed_rows)
        tokens = jnp.concatenate([tiles.tokens.reshape(-1), last_token[rows.slots]])
        positions = (tiles.starts[:, None] + jnp.arange(page_size)[None, :]).reshape(-1)
        positions = jnp.concatenate([positions, jnp.maximum(rows.lengths - 1, 0)])
        return llama.embed(config, weights, tokens), llama.rotation(config, positions)

    def layer_mixed(
        layer: LayerWeights,
        cache: Array,
        x: Array,
        turn: Array,
        packed_tiles: Array,
        packed_rows: Array,
        one_request: bool,
    ) -> tuple[Array, Array]:
        tiles = TileBatch.unpack(packed_tiles, page_size)
        rows = DecodeBatch.unpack(packed_rows)
        num_tiles = tiles.starts.shape[0]
        prompt = num_tiles * page_size
        q, k, v = llama.pre_attention(config, layer, x, turn)

        def tiled(a: Array) -> Array:
            return a[:prompt].reshape(num_tiles, page_size, *a.shape[1:])

        decoded = q[prompt:]
        if rows.slots.shape[0]:
            decoded, cache = attention(decoded, k[prompt:], v[prompt:], cache, rows.table, rows.lengths)
            # Without an order between reading the cache here and writing to it below, XLA would copy the cache.
            decoded, cache = lax.optimization_barrier((decoded, cache))
        cache = write_tiles(cache, tiles.pages, tiled(k), tiled(v))
        out = prefill_attention(tiled(q), cache, tiles.table, tiles.starts, one_request=one_request)
        out = jnp.concatenate([out.reshape(prompt, *q.shape[1:]), decoded.astype(out.dtype)])
        return llama.post_attention(config, layer, x, out), cache

    def sample_rows(
        weights: Weights,
        x: Array,
        packed: Array,
        last_token: Array,
        seen: Array | None,
        settings: SamplingRows | None,
        mode: SamplingMode,
    ) -> tuple[Sampled, Array, Array | None]:
        rows = SampleBatch.unpack(packed)
        if settings is not None:
            settings = replace(settings, step=rows.steps, seen=None if seen is None else seen[rows.slots])
        sampled = sample(llama.logits(config, weights, x), settings, mode=mode)
        if seen is not None:
            seen = seen.at[rows.slots, sampled.tokens].set(True)
        return sampled, last_token.at[rows.slots].set(sampled.tokens), seen

    return Programs(
        decode_step=jax.jit(decode_step, donate_argnames=("caches",)),
        embed_mixed=jax.jit(embed_mixed),
        layer_mixed=jax.jit(layer_mixed, donate_argnames=("cache", "x"), static_argnames=("one_request",)),
        take=jax.jit(lambda x, rows: x[rows]),
        sample=jax.jit(sample_rows, donate_argnames=("last_token", "seen"), static_argnames=("mode",)),
        mark_prompt=jax.jit(lambda seen, slot, row: seen.at[slot].set(row), donate_argnums=0),
    )
