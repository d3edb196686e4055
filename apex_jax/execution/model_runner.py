"""The model on the device: its weights and KV pages, the programs that take packed batches through it,
and what is known of each request slot between two iterations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..models.config import LlamaConfig
from ..models.llama import Weights
from ..sampling_params import SamplingParams
from .batch import Buckets
from .logit_edits import LogitEdits, RowEdits, pack_allowed, pack_entries
from .programs import Passed, Programs, Riders
from .sampler import Sampled, SamplingMode, SamplingRows, pack_rows


class Slots:
    """Sampling settings of every slot in host memory, and what sampling leaves on the device.

    Args:
        programs: of the model.
        config: the model.
        buckets: batch shapes; the slot behind the last is that of padding rows.
        device: where tokens are sampled.

    Attributes:
        last_token: int32 [slots + 1] on the device.
    """

    def __init__(self, programs: Programs, config: LlamaConfig, buckets: Buckets, device: jax.Device) -> None:
        self._programs = programs
        self._vocab_size = config.vocab_size
        self._count = buckets.slots + 1
        self._device = device
        self._eos_token_ids = config.eos_token_ids
        self.reset()

    def reset(self) -> None:
        """Forget all requests."""
        self.last_token = jnp.zeros(self._count, jnp.int32, device=self._device)
        self._params = [SamplingParams(temperature=0)] * self._count
        self._settings = pack_rows([None] * self._count, eos_token_ids=())
        self._seen: jax.Array | None = None

    def assign(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Give a slot to a request; see `Device.assign_slot`."""
        self._params[slot] = params
        settings = pack_rows([(params, seed, 0)], eos_token_ids=self._eos_token_ids)
        jax.tree.map(lambda table, row: table.__setitem__(slot, row[0]), self._settings, settings)
        if SamplingMode.covering([params]).penalties:
            self.mark_seen(slot, tokens)

    def mark_seen(self, slot: int, tokens: Sequence[int]) -> None:
        """Note which tokens a slot has had, on the device: these alone."""
        row = np.zeros(self._vocab_size, bool)
        row[list(tokens)] = True
        if self._seen is None:
            self._seen = jnp.zeros((self._count, self._vocab_size), bool, device=self._device)
        self._seen = self._programs.mark_prompt(self._seen, np.int32(slot), row)

    def mode(self, slots: Iterable[int]) -> SamplingMode:
        """Return what sampling has to do for the requests in some slots."""
        return SamplingMode.covering([self._params[slot] for slot in slots])

    def sample(
        self, weights: Weights, x: jax.Array, batch: np.ndarray, mode: SamplingMode, edits: Sequence[RowEdits | None]
    ) -> Sampled:
        """Sample a token for each row of a batch, the last one of its slot from then on.

        Args:
            weights: of the head.
            x: residual stream behind the last layer, [R, D].
            batch: int32 [R, 2], see `SampleBatch`.
            mode: covers all of its rows.
            edits: of its first rows; the others have none.
        """
        settings = self._settings_of(batch[:, 0], mode)
        if settings is not None and mode.edits:
            settings = replace(settings, edits=self._edits(edits, batch))
        seen = self._seen if mode.penalties else None
        sampled, self.last_token, seen = self._programs.sample(
            weights, x, batch, self.last_token, seen, settings, mode=mode
        )
        if mode.penalties:
            self._seen = seen
        return sampled

    def _edits(self, rows: Sequence[RowEdits | None], batch: np.ndarray) -> LogitEdits:
        added: Any = None
        for places, values in pack_entries(rows, len(batch)):
            added = self._programs.spread(added, batch, places, values)
        allowed: Any = pack_allowed(rows, len(batch), self._vocab_size)
        return LogitEdits(allowed=allowed, added=added)

    def _settings_of(self, slots: np.ndarray, mode: SamplingMode) -> SamplingRows | None:
        # A copy, which a program still under way may read after a slot's settings have changed.
        return jax.tree.map(lambda table: table[slots], self._settings) if mode.sampled else None


SEGMENT = 4
"""Layers of one program where device rows go on alone: dispatching a program costs as much as three layers in one."""


@dataclass(kw_only=True)
class Lane:
    """The device rows of an iteration, wherever they have come to.

    Attributes:
        tiles, rows: the batch, see `TileBatch` and `DecodeBatch`.
        turn: rotation of all tokens.
        passed: what the last boundary gave.
        one_request: all tiles are of one.
        num_tiles, num_rows: padding included.
        attended: attention of the layer ahead, once it has been computed.
    """

    tiles: jax.Array | None
    rows: Any
    turn: jax.Array
    passed: Passed
    one_request: bool
    num_tiles: int
    num_rows: int
    attended: jax.Array | None = None


class ModelRunner:
    """Advances the device's arrays; nothing here waits for them, and nothing knows what a plan is.

    Args:
        config: the model.
        weights: its arrays; they are moved to `device` if they are elsewhere.
        programs: of the model.
        device: where everything runs.
        buckets: the batch shapes to compile for, and the pages of the KV cache.

    Attributes:
        programs: what runs.
        slots: what is known of each request slot.
        caches: KV pages of each layer, [P, K, 2, S, H].
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights,
        *,
        programs: Programs,
        device: jax.Device,
        buckets: Buckets,
    ) -> None:
        self.config = config
        self.device = device
        self.num_layers = config.num_hidden_layers
        self.buckets = buckets
        self.programs = programs
        self.slots = Slots(programs, config, buckets, device)
        self._shapes: set[tuple[Any, ...]] = set()
        self._new_shapes = False
        self.set_weights(weights)
        self.reset()

    def set_weights(self, weights: Weights) -> None:
        """Use other weights of the same shapes from now on."""
        self._weights = self._sent(weights)
        # The head's programs get a tree without layers: flattening hundreds of leaves costs more than a dispatch.
        self._ends = replace(self._weights, layers=())

    @property
    def dtype(self) -> jnp.dtype:
        """The type of weights and KV cache."""
        return self._weights.dtype

    def reset(self) -> None:
        """Forget all requests. Arrays are made anew, because an interrupted dispatch may have consumed the old ones."""
        config, capacity = self.config, self.buckets.capacity
        pages = (capacity.device_pages, config.num_key_value_heads, 2, capacity.page_size, config.head_dim)
        # The old ones go first, or there would have to be room for both.
        self.caches: list[jax.Array] = []
        self.caches = [self._empty(pages) for _ in range(self.num_layers)]
        self.slots.reset()

    def _sent(self, weights: Weights) -> Weights:
        return jax.device_put(weights, self.device)

    def _empty(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros(shape, self.dtype, device=self.device)

    def take_new_shapes(self) -> bool:
        """Return whether a batch of a shape that had not run before has been dispatched since the last call."""
        found, self._new_shapes = self._new_shapes, False
        return found

    def _note_shape(self, *shape: Any) -> None:
        if shape not in self._shapes:
            self._shapes.add(shape)
            self._new_shapes = True

    def decode(self, rows: np.ndarray) -> Lane:
        """Take decode rows through the whole model."""
        self._note_shape("decode", *rows.shape)
        x, caches = self.programs.decode_step(self._weights, tuple(self.caches), self.slots.last_token, rows)
        self.caches = list(caches)
        return Lane(tiles=None, rows=rows, turn=x, passed=(x, None), one_request=True, num_tiles=0, num_rows=len(rows))

    def embed(self, tiles: np.ndarray | None, rows: np.ndarray, *, one_request: bool) -> Lane:
        """Bring in device rows; they stand before boundary 0."""
        num_tiles = 0 if tiles is None else len(tiles)
        self._note_shape("lane", num_tiles, *rows.shape, one_request)
        x, turn, sent_tiles, sent_rows = self.programs.embed(self._ends, self.slots.last_token, tiles, rows)
        return Lane(
            tiles=sent_tiles,
            rows=sent_rows,
            turn=turn,
            passed=(x, None),
            one_request=one_request,
            num_tiles=num_tiles,
            num_rows=len(rows),
        )

    def board(self, rows: np.ndarray) -> Riders:
        """Bring in the rows of a cohort; they stand before boundary 0."""
        x, turn, _, _ = self.programs.embed(self._ends, self.slots.last_token, None, rows)
        return Riders(x, turn, None)

    def boundary(
        self, boundary: int, device: Riders | None, cohort: Riders | None
    ) -> tuple[Passed | None, tuple[jax.Array, jax.Array | None] | None]:
        """Take rows over a boundary, 0 to L; returns device rows and cohort, with heads for the layer ahead."""
        if cohort is not None:
            rows = device and device.x.shape[0]
            self._note_shape("cohort", rows, cohort.x.shape[0], boundary in (0, self.num_layers))
        return self.programs.boundary(self._layer(boundary - 1), self._layer(boundary), device, cohort)

    def attend(self, lane: Lane, layer: int) -> jax.Array:
        """Return the device rows' attention of a layer, [T, N, H]."""
        attended, self.caches[layer] = self.programs.attend(
            self.caches[layer], lane.passed[1], lane.tiles, lane.rows, one_request=lane.one_request
        )
        return attended

    def segment(self, lane: Lane, boundary: int, end: int) -> tuple[Passed, int]:
        """Attend and pass boundaries from one on, up to `end` or as many as one program takes; returns how many."""
        # Neither prompts, whose programs take long enough, nor the end of the model have programs of several layers.
        several = lane.tiles is None and boundary + SEGMENT <= min(end, self.num_layers)
        count = SEGMENT if several else 1
        behind = slice(boundary - 1, boundary - 1 + count)
        weights = (*self._weights.layers[behind], self._layer(boundary - 1 + count))
        passed, self.caches[behind] = self.programs.layers(
            weights,
            tuple(self.caches[behind]),
            lane.passed,
            lane.turn,
            lane.tiles,
            lane.rows,
            one_request=lane.one_request,
        )
        return passed, count

    def sample(
        self, x: jax.Array, batch: np.ndarray, mode: SamplingMode, edits: Sequence[RowEdits | None] = ()
    ) -> Sampled:
        """Sample for rows behind the last layer; see `Slots.sample`."""
        self._note_shape("sample", len(batch), mode)
        return self.slots.sample(self._ends, x, batch, mode, edits)

    def gather(self, layer: int, pages: np.ndarray) -> jax.Array:
        """Return copies of a layer's pages, [M, K, 2, S, H]."""
        return self.programs.gather(self.caches[layer], pages)

    def scatter(self, layer: int, pages: np.ndarray, tiles: Any) -> None:
        """Write a layer's pages; ids of P or more are padding."""
        self.caches[layer] = self.programs.scatter(self.caches[layer], pages, tiles)

    def no_ends(self, count: int) -> jax.Array:
        """Return empty rows that sample, [count, D]."""
        return jnp.zeros((count, self.config.hidden_size), jnp.float32, device=self.device)

    def no_attention(self, rows: int) -> jax.Array:
        """Return zeros in the place of an attention [rows, N, H] that could not be had."""
        shape = (rows, self.config.num_attention_heads, self.config.head_dim)
        return self._empty(shape)

    def _layer(self, index: int) -> Any:
        return self._weights.layers[index] if 0 <= index < self.num_layers else None
