"""The device programs of an iteration: pure functions over weights, caches and packed integer batches.

An iteration that only decodes device rows is one whole-step program, so that Python dispatches once. Any other runs
from boundary to boundary (see `scheduler.plan`): `boundary` is post-attention of one layer and pre-attention of the
next for device rows, a cohort of host rows, or both in one batch; `attend` is the device rows' attention in between;
`layers` is both in one, once or several times in a row, for the boundaries that no cohort rides. Each is compiled once
for all layers.
All end in `sample_rows`, which takes the rows that need a token through the head and the sampler and leaves the tokens
on the device, where the next iteration reads them. Its shapes depend on the number of these rows alone (`collect`
brings them together from all that rode to the end), because there are many sampling modes to compile.

Letters beside the project's: M tiles of S prompt tokens (a tile fills one KV page), R rows that sample, W page table
width. T counts the tokens of a batch: those of the tiles, then the decode rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..models import llama
from ..models.config import LlamaConfig
from ..models.llama import Weights
from .logit_edits import spread
from .page_writes import replace_pages, write_tiles
from .paged_attention import prefill_attention
from .sampler import Sampled, SamplingMode, SamplingRows, sample

LayerWeights = Any
Caches = tuple[Array, ...]

ROW_COLUMNS = 2
"""Columns of a decode batch before the page table."""

TILE_COLUMNS = 2
"""Columns of a tile batch before the tokens and the page table."""

DecodeAttention = Callable[[Array, Array, Array, Array, Array, Array, int | None], tuple[Array, Array]]
"""(q [B, N, H], k [B, K, H], v [B, K, H], kv [P, K, 2, S, H], table [B, W], lengths [B], window) ->
(attention [B, N, H], kv).

Appends k and v at position `lengths - 1` and attends over `lengths` tokens, the last `window` of them if that is not
None; rows of length 0 are padding."""


class DecodeBatch(NamedTuple):
    """Columns of int32 [B, 2 + W]; padding rows have length 0 and the spare slot. W is 0 for host rows."""

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


class Heads(NamedTuple):
    """What pre-attention gives: q [T, N, H], k and v [T, K, H]."""

    q: Array
    k: Array
    v: Array


class Riders(NamedTuple):
    """Rows that pass a boundary together.

    Attributes:
        x: residual stream [T, D].
        turn: their rotation, float32 [T, 2, H/2].
        attended: attention [T, N, H] of the layer behind the boundary; None at boundary 0.
    """

    x: Array
    turn: Array
    attended: Array | None


Passed = tuple[Array, Heads | None]
"""x [T, D] after a boundary and the heads for the layer ahead, which boundary L does not give."""


@dataclass(frozen=True)
class Programs:
    """Jitted programs for one model, device attention and page size; each compiles once for every shape of its
    batch."""

    decode_step: Callable[..., tuple[Array, Caches]]
    embed: Callable[..., tuple[Array, Array, Array | None, Array]]
    boundary: Callable[..., tuple[Passed | None, tuple[Array, Array | None] | None]]
    attend: Callable[..., tuple[Array, Array]]
    layers: Callable[..., tuple[Passed, Caches]]
    collect: Callable[[Array, Array, Any], Array]
    sample: Callable[..., tuple[Sampled, Array, Array | None]]
    mark_prompt: Callable[[Array, Any, Any], Array]
    spread: Callable[[Array | None, Any, Any, Any], Array]
    gather: Callable[[Array, Any], Array]
    scatter: Callable[[Array, Any, Any], Array]


def build_programs(config: LlamaConfig, attention: DecodeAttention, page_size: int) -> Programs:
    """Return the device programs.

    Args:
        config: the model.
        attention: append and decode attention over the paged cache.
        page_size: tokens a KV page and a prompt tile hold.
    """
    window = config.sliding_window

    # By itself, so that JAX traces and lowers it once for all layers.
    @jax.jit
    def decode_layer(
        layer: LayerWeights, x: Array, turn: Array, cache: Array, rows: DecodeBatch
    ) -> tuple[Array, Array]:
        q, k, v = llama.pre_attention(config, layer, x, turn)
        out, cache = attention(q, k, v, cache, rows.table, rows.lengths, window)
        return llama.post_attention(config, layer, x, out), cache

    def decode_step(weights: Weights, caches: Caches, last_token: Array, packed: Array) -> tuple[Array, Caches]:
        rows = DecodeBatch.unpack(packed)
        x = llama.embed(config, weights, last_token[rows.slots])
        turn = llama.rotation(config, jnp.maximum(rows.lengths - 1, 0))
        new_caches = []
        for layer, cache in zip(weights.layers, caches, strict=True):
            x, cache = decode_layer(layer, x, turn, cache, rows)
            new_caches.append(cache)
        return x, tuple(new_caches)

    def embed(
        weights: Weights, last_token: Array, packed_tiles: Array | None, packed_rows: Array
    ) -> tuple[Array, Array, Array | None, Array]:
        rows = DecodeBatch.unpack(packed_rows)
        tokens, positions = last_token[rows.slots], jnp.maximum(rows.lengths - 1, 0)
        if packed_tiles is not None:
            tiles = TileBatch.unpack(packed_tiles, page_size)
            places = (tiles.starts[:, None] + jnp.arange(page_size)[None, :]).reshape(-1)
            tokens = jnp.concatenate([tiles.tokens.reshape(-1), tokens])
            positions = jnp.concatenate([places, positions])
        # With the batches, so that they are sent to the device once and Python need not send them by themselves.
        return llama.embed(config, weights, tokens), llama.rotation(config, positions), packed_tiles, packed_rows

    def boundary(
        behind: LayerWeights | None, ahead: LayerWeights | None, device: Riders | None, cohort: Riders | None
    ) -> tuple[Passed | None, tuple[Array, Array | None] | None]:
        on_board = [riders for riders in (device, cohort) if riders is not None]
        x = jnp.concatenate([riders.x for riders in on_board])
        if behind is not None:
            attended = jnp.concatenate([jnp.asarray(riders.attended, x.dtype) for riders in on_board])
            x = llama.post_attention(config, behind, x, attended)
        heads = None
        if ahead is not None:
            turn = jnp.concatenate([riders.turn for riders in on_board])
            heads = Heads(*llama.pre_attention(config, ahead, x, turn))
        border = 0 if device is None else device.x.shape[0]
        first = None if device is None else (x[:border], heads and Heads(*(part[:border] for part in heads)))
        if cohort is None:
            return first, None
        return first, (x[border:], heads and jnp.concatenate([part[border:] for part in heads], axis=1))

    def attend(
        cache: Array, heads: Heads, packed_tiles: Array | None, packed_rows: Array, one_request: bool
    ) -> tuple[Array, Array]:
        rows = DecodeBatch.unpack(packed_rows)
        if packed_tiles is None:
            return attention(*heads, cache, rows.table, rows.lengths, window)
        tiles = TileBatch.unpack(packed_tiles, page_size)
        num_tiles = tiles.starts.shape[0]
        prompt = num_tiles * page_size
        q, k, v = heads

        def tiled(a: Array) -> Array:
            return a[:prompt].reshape(num_tiles, page_size, *a.shape[1:])

        decoded = q[prompt:]
        if rows.slots.shape[0]:
            decoded, cache = attention(decoded, k[prompt:], v[prompt:], cache, rows.table, rows.lengths, window)
            # Without an order between reading the cache here and writing to it below, XLA would copy the cache.
            decoded, cache = lax.optimization_barrier((decoded, cache))
        cache = write_tiles(cache, tiles.pages, tiled(k), tiled(v))
        out = prefill_attention(tiled(q), cache, tiles.table, tiles.starts, one_request=one_request, window=window)
        return jnp.concatenate([out.reshape(prompt, *q.shape[1:]), decoded.astype(out.dtype)]), cache

    def layers(
        weights: Sequence[LayerWeights | None],
        caches: Caches,
        passed: Passed,
        turn: Array,
        packed_tiles: Array | None,
        packed_rows: Array,
        one_request: bool,
    ) -> tuple[Passed, Caches]:
        new_caches = []
        for (behind, ahead), cache in zip(pairwise(weights), caches, strict=True):
            x, heads = passed
            assert heads is not None
            attended, cache = attend(cache, heads, packed_tiles, packed_rows, one_request)
            after, _ = boundary(behind, ahead, Riders(x, turn, attended), None)
            assert after is not None
            passed = after
            new_caches.append(cache)
        return passed, tuple(new_caches)

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

    def spread_entries(added: Array | None, packed: Array, places: Array, values: Array) -> Array:
        return spread(added, places, values, count=packed.shape[0], vocab_size=config.vocab_size)

    return Programs(
        decode_step=jax.jit(decode_step, donate_argnames=("caches",)),
        embed=jax.jit(embed),
        boundary=jax.jit(boundary),
        attend=jax.jit(attend, donate_argnames=("cache",), static_argnames=("one_request",)),
        layers=jax.jit(layers, donate_argnames=("caches",), static_argnames=("one_request",)),
        collect=jax.jit(lambda ends, x, places: ends.at[places].set(x, mode="drop"), donate_argnums=0),
        sample=jax.jit(sample_rows, donate_argnames=("last_token", "seen"), static_argnames=("mode",)),
        mark_prompt=jax.jit(lambda seen, slot, row: seen.at[slot].set(row), donate_argnums=0),
        spread=jax.jit(spread_entries, donate_argnums=0),
        gather=jax.jit(lambda cache, pages: cache[pages]),
        scatter=jax.jit(replace_pages, donate_argnums=0),
    )
