"""The device of a JAX backend: its arrays, and the programs that take them from boundary to boundary.

The only module of the engine that touches device arrays. It mirrors what the programs need to know of each request
slot (page table row, sampling settings) in numpy. Nothing here waits for the device except `fetch` and what the
functions that `boundary` and `gather` return do when they are called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ..models.config import LlamaConfig
from ..models.llama import Weights
from ..sampling_params import SamplingParams
from ..scheduler import Cohort, Plan
from ..tracing.device_clock import DeviceClock
from ..tracing.recorder import Recorder
from .batch import (
    PageTables,
    pack_cohort,
    pack_rows,
    pack_samples,
    pack_tiles,
    padded_pages,
    padding_rows,
    padding_samples,
    padding_tiles,
    table_width,
)
from .buckets import Buckets
from .programs import DecodeAttention, Passed, Riders, build_programs
from .sampler import MODES, Sampled, SamplingMode, SamplingRows
from .sampler import pack_rows as pack_settings

SEGMENT = 4
"""Layers of one program where device rows go on alone: dispatching a program costs as much as three layers in one."""


@dataclass(kw_only=True)
class _Lane:
    """The device rows of the plan under way."""

    tiles: jax.Array | None
    rows: Any
    turn: jax.Array
    passed: Passed
    one_request: bool
    num_tiles: int
    num_rows: int
    attended: jax.Array | None = None


@dataclass(kw_only=True)
class _Parked:
    """The rows of a cohort between two boundaries."""

    x: jax.Array
    turn: jax.Array


class JaxDevice:
    """Device state (weights, KV cache, last tokens, parked rows) and the programs that advance it.

    Args:
        config: the model.
        weights: its arrays; they are moved to `device` if they are elsewhere.
        attention: append and decode attention of this device.
        device: where everything runs.
        buckets: the batch shapes to compile for, and the pages of the KV cache.
        eos_token_ids: tokens that a request with `min_tokens` may not draw early.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights,
        *,
        attention: DecodeAttention,
        device: jax.Device,
        buckets: Buckets,
        eos_token_ids: Sequence[int],
    ) -> None:
        self.config = config
        self.device = device
        self.buckets = buckets
        self.num_layers = config.num_hidden_layers
        self._eos_token_ids = tuple(eos_token_ids)
        self._programs = build_programs(config, attention, buckets.page_size)
        self._clock: DeviceClock | None = None
        self._recorder: Recorder | None = None
        self._shapes: set[tuple[Any, ...]] = set()
        self._new_shapes = False
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
        slots, config = self.buckets.slots, self.config
        page = (config.num_key_value_heads, 2, self.buckets.page_size, config.head_dim)
        self._caches: list[jax.Array] = []
        self._caches = [
            jnp.zeros((self.buckets.capacity.device_pages, *page), self._weights.dtype, device=self.device)
            for _ in range(config.num_hidden_layers)
        ]
        self._last_token = jnp.zeros(slots + 1, jnp.int32, device=self.device)
        self._seen: jax.Array | None = None
        self.tables = PageTables(self.buckets)
        self._params: list[SamplingParams] = [SamplingParams(temperature=0)] * (slots + 1)
        self._settings = pack_settings([None] * (slots + 1), eos_token_ids=())
        self._lane: _Lane | None = None
        self._parked: dict[int, _Parked] = {}
        self._latest: Any = jnp.zeros((), device=self.device)

    def assign_slot(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Give a slot to a request before the plan with its first chunk is submitted.

        Args:
            slot: row of the per-request state.
            params: the request's sampling settings.
            seed: uint32 [2], see `seed_words`.
            tokens: prompt and output so far, which a repetition penalty counts.
        """
        self._params[slot] = params
        settings = pack_settings([(params, seed, 0)], eos_token_ids=self._eos_token_ids)
        jax.tree.map(lambda table, row: table.__setitem__(slot, row[0]), self._settings, settings)
        if SamplingMode.covering([params]).penalties:
            seen = np.zeros(self.config.vocab_size, bool)
            seen[list(tokens)] = True
            self._seen = self._programs.mark_prompt(self._seen_table(), np.int32(slot), seen)

    def record(self, recorder: Recorder | None) -> None:
        """Record the times of all programs from now on; with None, end that and complete what has been recorded."""
        if self._clock is not None:
            self._clock.finish()
        self._clock = None if recorder is None else DeviceClock(recorder)
        self._recorder = recorder

    def _ran(
        self, name: str, result: jax.Array, began_ns: int, *, ends: Mapping[str, Any] | None = None, **args: Any
    ) -> None:
        self._latest = result
        if self._clock is not None:
            self._clock.note(name, result, began_ns, ends_iteration=ends, **args)

    def take_new_shapes(self) -> bool:
        """Return whether a batch of a shape that had not run before has been dispatched since the last call."""
        found, self._new_shapes = self._new_shapes, False
        return found

    def _note_shape(self, *shape: Any) -> None:
        if shape not in self._shapes:
            self._shapes.add(shape)
            self._new_shapes = True

    def run_decode(self, plan: Plan) -> None:
        """Run a plan that has device rows alone and no prompts, as one program."""
        began = time.perf_counter_ns()
        width = table_width(plan.decode, (), self.buckets)
        rows = pack_rows(plan.decode, self.tables, self.buckets, sizes=self.buckets.decode_rows, width=width)
        self._ran("decode", self._decode(rows), began, rows=len(plan.decode))

    def _decode(self, rows: np.ndarray) -> jax.Array:
        self._note_shape("decode", *rows.shape)
        x, caches = self._programs.decode_step(self._weights, tuple(self._caches), self._last_token, rows)
        self._caches = list(caches)
        self._lane = _Lane(
            tiles=None, rows=rows, turn=x, passed=(x, None), one_request=True, num_tiles=0, num_rows=len(rows)
        )
        return x

    def begin(self, plan: Plan) -> None:
        """Bring in the device rows of a plan that goes from boundary to boundary, if it has any."""
        self._lane = None
        if not plan.has_device_rows:
            return
        sizes = self.buckets.mixed_rows if plan.prefill else self.buckets.decode_rows
        width = table_width(plan.decode, plan.prefill, self.buckets)
        rows = pack_rows(plan.decode, self.tables, self.buckets, sizes=sizes, width=width)
        tiles = None
        if plan.prefill:
            tiles = pack_tiles(plan.prefill, self.tables, self.buckets, width=width)
        self._lane = self._embed(tiles, rows, one_request=len(plan.prefill) <= 1)

    def _embed(self, tiles: np.ndarray | None, rows: np.ndarray, *, one_request: bool) -> _Lane:
        self._note_shape("lane", 0 if tiles is None else len(tiles), *rows.shape, one_request)
        x, turn, sent_tiles, sent_rows = self._programs.embed(self._ends, self._last_token, tiles, rows)
        return _Lane(
            tiles=sent_tiles,
            rows=sent_rows,
            turn=turn,
            passed=(x, None),
            one_request=one_request,
            num_tiles=0 if tiles is None else len(tiles),
            num_rows=len(rows),
        )

    def board(self, cohort: Cohort) -> None:
        """Bring in the rows of a cohort that begins a token."""
        self._board(cohort.id, pack_cohort(cohort, self.buckets))

    def _board(self, cohort: int, rows: np.ndarray) -> None:
        x, turn, _, _ = self._programs.embed(self._ends, self._last_token, None, rows)
        self._parked[cohort] = _Parked(x=x, turn=turn)

    def boundary(
        self, boundary: int, *, device: bool, cohort: int | None, attended: Any
    ) -> Callable[[], np.ndarray] | None:
        """Run post-attention of the layer behind a boundary and pre-attention of the one ahead.

        Args:
            boundary: 0 to L.
            device: the plan's device rows ride; unless at 0, `attend` has run for the layer behind.
            cohort: the cohort that rides, if any.
            attended: what `deliver` returned for the cohort's attention of the layer behind; None at 0.

        Returns:
            For a cohort at a boundary below L, a function that waits for its queries, keys and values,
            [n, N + 2K, H], and returns them in host memory.
        """
        began = time.perf_counter_ns()
        riders = parked = None
        if device:
            assert self._lane is not None
            riders = Riders(self._lane.passed[0], self._lane.turn, self._lane.attended)
        if cohort is not None:
            parked = self._parked[cohort]
            self._note_shape("cohort", riders and len(riders.x), len(parked.x), boundary in (0, self.num_layers))
            parked = Riders(parked.x, parked.turn, attended)
        passed, hosted = self._programs.boundary(self._layer(boundary - 1), self._layer(boundary), riders, parked)
        mark: dict[str, Any] = {} if cohort is None else {"cohort": cohort}
        if passed is not None:
            assert self._lane is not None
            self._lane.passed, self._lane.attended = passed, None
            self._ran("linear", passed[0], began, layer=min(boundary, self.num_layers - 1), **mark)
        if hosted is None:
            return None
        assert cohort is not None
        x, qkv = hosted
        self._parked[cohort].x = x
        if passed is None:
            self._ran("linear", x, began, layer=min(boundary, self.num_layers - 1), **mark)
        return None if qkv is None else self._fetched(qkv, layer=boundary, cohort=cohort)

    def attend(self, layer: int) -> None:
        """Run the device rows' attention of a layer."""
        began, lane = time.perf_counter_ns(), self._lane
        assert lane is not None
        lane.attended, self._caches[layer] = self._programs.attend(
            self._caches[layer], lane.passed[1], lane.tiles, lane.rows, one_request=lane.one_request
        )
        self._ran("attention", lane.attended, began, layer=layer)

    def layers(self, boundary: int, count: int) -> None:
        """Run `attend` and the boundary after it, for the device rows alone, so many times.

        Args:
            boundary: the first of the boundaries, 1 to L.
            count: how many.
        """
        end = boundary + count
        while boundary < end:
            boundary += self._segment(boundary, end)

    def _segment(self, boundary: int, end: int) -> int:
        """Run as many of the boundaries as one program takes; returns how many."""
        began, lane = time.perf_counter_ns(), self._lane
        assert lane is not None
        # Neither prompts, whose programs take long enough, nor the end of the model have programs of several layers.
        several = lane.tiles is None and boundary + SEGMENT <= min(end, self.num_layers)
        count = SEGMENT if several else 1
        behind = slice(boundary - 1, boundary - 1 + count)
        weights = (*self._weights.layers[behind], self._layer(boundary - 1 + count))
        lane.passed, self._caches[behind] = self._programs.layers(
            weights,
            tuple(self._caches[behind]),
            lane.passed,
            lane.turn,
            lane.tiles,
            lane.rows,
            one_request=lane.one_request,
        )
        self._ran("layer", lane.passed[0], began, layer=boundary - 1, last_layer=boundary + count - 2)
        return count

    def sample(self, plan: Plan) -> Any:
        """Sample for the rows that rode to the end; returns what `fetch` takes, and forgets the cohorts among them."""
        began, lane = time.perf_counter_ns(), self._lane
        arrived = [self._parked.pop(cohort.id).x for cohort in plan.arriving]
        if not plan.sampling_requests:
            return self._latest
        num_tiles, num_rows = (lane.num_tiles, lane.num_rows) if lane else (0, 0)
        places, batch = pack_samples(plan, self.buckets, tiles=num_tiles, device_rows=num_rows)
        if lane and not plan.prefill and not arrived:
            x = lane.passed[0]
        else:
            x = self._no_ends(len(batch))
            for part, rows in zip([lane and lane.passed[0], *arrived], places, strict=True):
                if part is not None:
                    x = self._programs.collect(x, part, rows)
        mode = SamplingMode.covering([self._params[slot] for slot in batch[: len(plan.sampling_requests), 0]])
        sampled = self._sample(x, batch, mode)
        for leaf in jax.tree.leaves(sampled):
            leaf.copy_to_host_async()
        rows = len(plan.sampling_requests)
        ends = {"iteration": plan.number, "strategy": plan.strategy, "rows": rows}
        self._ran("head", sampled.tokens, began, ends=ends, rows=rows)
        return sampled

    def head(self, rows: int) -> Any:
        """Run the head for rows that belong to nobody, as many as a batch of so many samples has; returns what `fetch`
        takes."""
        count = self.buckets.fit(self.buckets.samples, rows)
        mode = SamplingMode.covering([SamplingParams()])
        return self._sample(self._no_ends(count), padding_samples(count, self.buckets), mode)

    def fetch(self, end: Any, count: int) -> Sampled:
        """Wait for a plan to end; samples as numpy arrays with `count` rows."""
        if isinstance(end, jax.Array):
            end.block_until_ready()
            return Sampled(tokens=cast(jax.Array, np.zeros(0, np.int32)))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], end)

    def gather(self, layer: int, pages: Sequence[int]) -> Callable[[], np.ndarray]:
        """Copy pages of a layer as they are now; the function returned waits for them, [M, K, 2, S, H] with padding."""
        ids = padded_pages(pages, self.buckets, padding=0)
        return self._fetched(self._programs.gather(self._caches[layer], ids), layer=layer)

    def scatter(self, layer: int, pages: Sequence[int], tiles: Any) -> None:
        """Write pages of a layer; `tiles` is what `deliver` returned for [M, K, 2, S, H]."""
        ids = padded_pages(pages, self.buckets, padding=self.buckets.capacity.device_pages)
        self._caches[layer] = self._programs.scatter(self._caches[layer], ids, tiles)

    def deliver(self, array: np.ndarray) -> jax.Array:
        """Start sending an array to the device. May be called from any thread."""
        return jax.device_put(array, self.device)

    def no_attention(self, rows: int) -> jax.Array:
        """Return zeros in the place of an attention [n, N, H] that could not be had."""
        shape = (rows, self.config.num_attention_heads, self.config.head_dim)
        return jnp.zeros(shape, self.dtype, device=self.device)

    def forget_cohorts(self) -> None:
        """Drop the rows of cohorts that will not board again."""
        self._parked.clear()

    def idle_since(self) -> int | None:
        """Return since when the device is known to have run all that was dispatched (`time.perf_counter_ns`); None if
        it has not.

        JAX tells whether a result is ready, but not since when: the answer is the present, or while a trace is
        recorded the moment at which the clock's thread noticed, if it has. May be called from any thread.
        """
        clock = self._clock
        if not self._latest.is_ready():
            return None
        noticed = clock.last_end() if clock is not None else None
        return time.perf_counter_ns() if noticed is None else noticed

    def _fetched(self, array: jax.Array, **args: int) -> Callable[[], np.ndarray]:
        array.copy_to_host_async()
        recorder = self._recorder
        if recorder is None:
            return lambda: np.asarray(array)

        def fetch() -> np.ndarray:
            # The copy has begun by itself; what can be seen of it is what is left when somebody asks.
            array.block_until_ready()
            begin = time.perf_counter_ns()
            copy = np.asarray(array)
            recorder.span("transfers", "to host", begin, time.perf_counter_ns(), rows=len(copy), **args)
            return copy

        return fetch

    def _no_ends(self, count: int) -> jax.Array:
        return jnp.zeros((count, self.config.hidden_size), jnp.float32, device=self.device)

    def _layer(self, index: int) -> Any:
        return self._weights.layers[index] if 0 <= index < self.num_layers else None

    def _sample(self, x: jax.Array, batch: np.ndarray, mode: SamplingMode) -> Sampled:
        self._note_shape("sample", len(batch), mode)
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
            shape = (self.buckets.slots + 1, self.config.vocab_size)
            return jnp.zeros(shape, bool, device=self.device)
        return self._seen

    def warm_up(self, modes: Sequence[SamplingMode] = MODES) -> None:
        """Compile every program that any plan can need, by running each on padding; changes no request."""
        buckets = self.buckets
        if any(mode.penalties for mode in modes):
            empty = np.zeros(self.config.vocab_size, bool)
            self._seen = self._programs.mark_prompt(self._seen_table(), np.int32(buckets.slots), empty)
        for count in buckets.decode_rows:
            for width in buckets.table_widths:
                self._decode(padding_rows(count, width, buckets))
        for count in buckets.samples:
            for mode in modes:
                self._sample(self._no_ends(count), padding_samples(count, buckets), mode)
        self._warm_up_lanes()
        jax.block_until_ready(self._last_token)

    def _warm_up_lanes(self) -> None:
        buckets = self.buckets
        mixed = [
            (tiles, count, alone)
            for tiles in buckets.tiles
            for alone in ((True, False) if tiles > 1 else (True,))
            for count in buckets.mixed_rows
        ]
        alone = [(None, count, True) for count in buckets.decode_rows] if buckets.capacity.max_host_seqs else []
        cohorts = [self._warm_up_cohort(count) for count in buckets.host_rows]
        for tiles, count, one_request in (*mixed, *alone):
            for width in buckets.table_widths:
                packed = None if tiles is None else padding_tiles(tiles, width, buckets)
                self._warm_up_lane(packed, padding_rows(count, width, buckets), one_request, cohorts)
        for count in buckets.moved_pages if cohorts else ():
            pages = np.full(count, self.buckets.capacity.device_pages, np.int32)
            tiles = self._programs.gather(self._caches[0], pages)
            self._caches[0] = self._programs.scatter(self._caches[0], pages, tiles)
        self._parked.clear()

    def _warm_up_cohort(self, count: int) -> Riders:
        self._board(-1, padding_rows(count, 0, self.buckets))
        parked = self._parked.pop(-1)
        attended = self.no_attention(count)
        self._pass_borders(None, Riders(parked.x, parked.turn, attended))
        self._collect_all(parked.x)
        return Riders(parked.x, parked.turn, attended)

    def _warm_up_lane(
        self, tiles: np.ndarray | None, rows: np.ndarray, one_request: bool, cohorts: Sequence[Riders]
    ) -> None:
        self._lane = lane = self._embed(tiles, rows, one_request=one_request)
        self.boundary(0, device=True, cohort=None, attended=None)
        passed = lane.passed
        self.attend(0)
        riders = Riders(passed[0], lane.turn, lane.attended)
        # One layer in the middle, the last one, and several, which prompts do not have.
        runs = [(1, 1), (self.num_layers, 1), *([(1, SEGMENT)] if tiles is None else [])]
        for boundary, count in runs:
            lane.passed = passed
            self.layers(boundary, min(count, self.num_layers))
        for cohort in (None, *cohorts):
            self._pass_borders(riders, cohort)
        self._collect_all(passed[0])

    def _collect_all(self, x: jax.Array) -> None:
        """Compile the collection of rows of this shape into every number of samples."""
        for count in self.buckets.samples:
            self._programs.collect(self._no_ends(count), x, np.full(len(x), count, np.int32))

    def _pass_borders(self, device: Riders | None, cohort: Riders | None) -> None:
        """Compile the boundary at both ends of the model and between two layers."""
        layer = self._weights.layers[0]
        for behind, ahead in ((None, layer), (layer, layer), (layer, None)):
            ends = [
                riders and riders._replace(attended=riders.attended if behind else None) for riders in (device, cohort)
            ]
            self._programs.boundary(behind, ahead, *ends)
