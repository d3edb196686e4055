"""Runs plans on the device: the only module of the engine that touches arrays.

It mirrors what the programs need to know of each request slot (page table row, sampling settings) in numpy, packs a
plan into one or two integer matrices, and dispatches. Nothing here waits for the device except `fetch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from .buckets import Buckets
from .models.config import LlamaConfig
from .models.llama import Weights
from .programs import ROW_COLUMNS, TILE_COLUMNS, DecodeAttention, build_programs
from .sampling import MODES, Sampled, SamplingMode, SamplingRows, pack_rows
from .sampling_params import SamplingParams
from .scheduler import Plan, PrefillChunk


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A plan under way.

    Attributes:
        plan: what was submitted.
        end: its samples on the device, those of `plan.sampling_requests` first; where it samples nothing, an array
            that is ready when the plan has run.
    """

    plan: Plan
    end: Sampled | jax.Array


class Executor:
    """Device state (weights, KV cache, last tokens) and the programs that advance it.

    Args:
        config: the model.
        weights: its arrays; they are moved to `device` if they are elsewhere.
        attention: append and decode attention of this device.
        device: where everything runs.
        num_pages: pages of the KV cache.
        buckets: the batch shapes to compile for.
        eos_token_ids: tokens that a request with `min_tokens` may not draw early.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights,
        *,
        attention: DecodeAttention,
        device: jax.Device,
        num_pages: int,
        buckets: Buckets,
        eos_token_ids: Sequence[int],
    ) -> None:
        self.config = config
        self.device = device
        self.num_pages = num_pages
        self.buckets = buckets
        self._eos_token_ids = tuple(eos_token_ids)
        self._programs = build_programs(config, attention, buckets.page_size)
        self.set_weights(weights)
        self.reset()

    def set_weights(self, weights: Weights) -> None:
        """Use other weights of the same shapes from the next iteration on."""
        self._weights = jax.device_put(weights, self.device)
        # The head's programs get a tree without layers: flattening hundreds of leaves costs more than a dispatch.
        self._ends = replace(self._weights, layers=())

    @property
    def dtype(self) -> jnp.dtype:
        """The type of weights and KV cache."""
        return self._weights.dtype

    def reset(self) -> None:
        """Forget all requests. Arrays are made anew, because an interrupted dispatch may have consumed the old ones."""
        slots, config = self.buckets.max_num_seqs, self.config
        page = (config.num_key_value_heads, 2, self.buckets.page_size, config.head_dim)
        self._caches: tuple[jax.Array, ...] = ()
        self._caches = tuple(
            jnp.zeros((self.num_pages, *page), self._weights.dtype, device=self.device)
            for _ in range(config.num_hidden_layers)
        )
        self._last_token = jnp.zeros(slots + 1, jnp.int32, device=self.device)
        self._seen: jax.Array | None = None
        self._tables = np.zeros((slots + 1, self.buckets.table_width), np.int32)
        self._params: list[SamplingParams] = [SamplingParams(temperature=0)] * (slots + 1)
        self._settings = pack_rows([None] * (slots + 1), eos_token_ids=())

    def assign_slot(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Give a slot to a request before the plan with its first chunk is submitted.

        Args:
            slot: row of the per-request state.
            params: the request's sampling settings.
            seed: uint32 [2], see `seed_words`.
            tokens: prompt and output so far, which a repetition penalty counts.
        """
        self._params[slot] = params
        settings = pack_rows([(params, seed, 0)], eos_token_ids=self._eos_token_ids)
        jax.tree.map(lambda table, row: table.__setitem__(slot, row[0]), self._settings, settings)
        if SamplingMode.covering([params]).penalties:
            seen = np.zeros(self.config.vocab_size, bool)
            seen[list(tokens)] = True
            self._seen = self._programs.mark_prompt(self._seen_table(), np.int32(slot), seen)

    def submit(self, plan: Plan) -> Submitted:
        """Dispatch a plan; returns before the device has run it."""
        for change in plan.new_pages:
            self._tables[change.slot, change.first : change.first + len(change.pages)] = change.pages
        rows = self._pack_rows(plan)
        if plan.prefill:
            tiles = self._pack_tiles(plan.prefill)
            x = self._run_mixed(tiles, rows, one_request=len(plan.prefill) == 1)
        else:
            tiles = ()
            x = self._run_decode(rows)
        if not plan.sampling_requests:
            return Submitted(plan=plan, end=x)
        ends, batch = self._pack_ends(plan, first_row=len(tiles) * self.buckets.page_size)
        if plan.prefill:
            x = self._programs.take(x, ends)
        mode = SamplingMode.covering([self._params[slot] for slot in batch[: len(plan.sampling_requests), 0]])
        sampled = self._sample(x, batch, mode)
        for leaf in jax.tree.leaves(sampled):
            leaf.copy_to_host_async()
        return Submitted(plan=plan, end=sampled)

    def fetch(self, submitted: Submitted) -> Sampled:
        """Wait for a plan to end; samples as numpy arrays with one row for each of `plan.sampling_requests`."""
        if isinstance(submitted.end, jax.Array):
            submitted.end.block_until_ready()
            return Sampled(tokens=cast(jax.Array, np.zeros(0, np.int32)))
        count = len(submitted.plan.sampling_requests)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], submitted.end)

    def warm_up(self, modes: Sequence[SamplingMode] = MODES) -> None:
        """Compile every program that any plan can need, by running each on padding; changes no request."""
        buckets = self.buckets
        if any(mode.penalties for mode in modes):
            empty = np.zeros(self.config.vocab_size, bool)
            self._seen = self._programs.mark_prompt(self._seen_table(), np.int32(buckets.max_num_seqs), empty)
        for count in buckets.decode_rows:
            xs = [self._run_decode(self._padding_rows(count, width)) for width in buckets.table_widths]
            for mode in modes:
                self._sample(xs[0], self._padding_batch(count), mode)
        for tiles in buckets.tiles:
            for count in buckets.mixed_rows:
                xs = [
                    self._run_mixed(self._padding_tiles(tiles), self._padding_rows(count, width), one_request=alone)
                    for width in (buckets.table_widths if count else buckets.table_widths[:1])
                    for alone in ((True, False) if tiles > 1 else (True,))
                ]
                for samples in buckets.decode_rows:
                    self._programs.take(xs[0], np.zeros(samples, np.int32))
        jax.block_until_ready(self._last_token)

    def _run_decode(self, rows: np.ndarray) -> jax.Array:
        x, self._caches = self._programs.decode_step(self._weights, self._caches, self._last_token, rows)
        return x

    def _run_mixed(self, tiles: np.ndarray, rows: np.ndarray, *, one_request: bool) -> jax.Array:
        packed = jax.device_put((tiles, rows), self.device)
        x, turn = self._programs.embed_mixed(self._ends, self._last_token, *packed)
        caches = list(self._caches)
        for index, layer in enumerate(self._weights.layers):
            x, caches[index] = self._programs.layer_mixed(
                layer, caches[index], x, turn, *packed, one_request=one_request
            )
        self._caches = tuple(caches)
        return x

    def _sample(self, x: jax.Array, batch: np.ndarray, mode: SamplingMode) -> Sampled:
        seen = self._seen if mode.penalties else None
        settings = self._settings_of(batch[:, 0], mode)
        sampled, self._last_token, seen = self._programs.sample(
            self._ends, x, batch, self._last_token, seen, settings, mode=mode
        )
        if mode.penalties:
            self._seen = seen
        return sampled

    def _settings_of(self, slots: np.ndarray, mode: SamplingMode) -> SamplingRows | None:
        # A copy, which a program still under way may read after a slot's settings have changed.
        return jax.tree.map(lambda table: table[slots], self._settings) if mode.sampled else None

    def _seen_table(self) -> jax.Array:
        if self._seen is None:
            shape = (self.buckets.max_num_seqs + 1, self.config.vocab_size)
            return jnp.zeros(shape, bool, device=self.device)
        return self._seen

    def _pack_rows(self, plan: Plan) -> np.ndarray:
        """Return the decode batch, int32 [B, 2 + W], padded to a bucket."""
        decode, buckets = plan.decode, self.buckets
        count = buckets.fit(buckets.mixed_rows if plan.prefill else buckets.decode_rows, len(decode))
        longest = max((row.length for row in decode), default=1)
        width = buckets.fit(buckets.table_widths, -(-longest // buckets.page_size))
        packed = self._padding_rows(count, width)
        if decode:
            slots = [row.slot for row in decode]
            packed[: len(decode), 0] = slots
            packed[: len(decode), 1] = [row.length for row in decode]
            packed[: len(decode), ROW_COLUMNS:] = self._tables[slots, :width]
        return packed

    def _pack_tiles(self, chunks: Sequence[PrefillChunk]) -> np.ndarray:
        """Return the prompt tiles, int32 [M, 2 + S + W], padded to a bucket."""
        size = self.buckets.page_size
        tiles = [-(-len(chunk.tokens) // size) for chunk in chunks]
        packed = self._padding_tiles(self.buckets.fit(self.buckets.tiles, sum(tiles)))
        tile = 0
        for chunk, count in zip(chunks, tiles, strict=True):
            block = packed[tile : tile + count]
            first_page = chunk.start // size
            block[:, 0] = chunk.start + np.arange(count) * size
            block[:, 1] = self._tables[chunk.slot, first_page : first_page + count]
            tokens = np.zeros(count * size, np.int32)
            tokens[: len(chunk.tokens)] = chunk.tokens
            block[:, TILE_COLUMNS : TILE_COLUMNS + size] = tokens.reshape(count, size)
            block[:, TILE_COLUMNS + size :] = self._tables[chunk.slot]
            tile += count
        return packed

    def _pack_ends(self, plan: Plan, *, first_row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the iteration's tokens are sampled after, int32 [R], and the sample batch, int32 [R, 2].

        `first_row` is the place of the first decode row, after the tiles. Both are padded to a bucket.
        """
        size, samples, tile = self.buckets.page_size, [], 0
        for chunk in plan.prefill:
            if chunk.samples:
                samples.append((tile * size + len(chunk.tokens) - 1, chunk.slot, chunk.step))
            tile += -(-len(chunk.tokens) // size)
        samples += [(row, item.slot, item.step) for row, item in enumerate(plan.decode, first_row)]
        count = self.buckets.fit(self.buckets.decode_rows, len(samples))
        ends, batch = np.zeros(count, np.int32), self._padding_batch(count)
        packed = np.array(samples, np.int32)
        ends[: len(samples)], batch[: len(samples)] = packed[:, 0], packed[:, 1:]
        return ends, batch

    def _padding_rows(self, count: int, width: int) -> np.ndarray:
        packed = np.zeros((count, ROW_COLUMNS + width), np.int32)
        packed[:, 0] = self.buckets.max_num_seqs
        return packed

    def _padding_tiles(self, count: int) -> np.ndarray:
        packed = np.zeros((count, TILE_COLUMNS + self.buckets.page_size + self.buckets.table_width), np.int32)
        packed[:, 1] = self.num_pages
        return packed

    def _padding_batch(self, count: int) -> np.ndarray:
        packed = np.zeros((count, 2), np.int32)
        packed[:, 0] = self.buckets.max_num_seqs
        return packed
