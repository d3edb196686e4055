"""The device of a JAX backend: turns plans into packed batches and sees that a model's programs run on them in order.

It mirrors what the programs need to know of each request slot (page table row, sampling settings) in numpy. Nothing
here waits for the device except `fetch` and what the functions that `boundary` and `gather` return do when they are
called.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

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
    padding_samples,
    table_width,
)
from .device import FromDevice
from .logit_edits import RowEdits
from .model_runner import Lane, ModelRunner
from .programs import Riders
from .sampler import Sampled, SamplingMode
from .warmup import warm_up


@dataclass(kw_only=True)
class ParkedRows:
    """The rows of a cohort between two boundaries.

    Attributes:
        cohort: its id.
        x: residual stream, [n, D].
        turn: their rotation.
    """

    cohort: int
    x: jax.Array
    turn: jax.Array


class JaxDevice:
    """Runs plans on a model; see `Device` for what an executor asks of it.

    Args:
        runner: holds the model, and its programs over packed batches.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.buckets = runner.buckets
        self.num_layers = runner.num_layers
        self._device = runner.device
        self._clock: DeviceClock | None = None
        self._recorder: Recorder | None = None
        self._start_empty()

    def _start_empty(self) -> None:
        self._tables = PageTables(self.buckets)
        self._lane: Lane | None = None
        self._latest: Any = jnp.zeros((), device=self._device)

    def reset(self) -> None:
        """Forget all requests."""
        self.runner.reset()
        self._start_empty()

    def warm_up(self) -> None:
        """Compile every program that any plan can need."""
        warm_up(self.runner)

    def assign_slot(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Give a slot to a request."""
        self.runner.slots.assign(slot, params, seed, tokens)

    def take_new_shapes(self) -> bool:
        """Return whether a batch of a new shape has been dispatched since the last call."""
        return self.runner.take_new_shapes()

    def record(self, recorder: Recorder | None) -> None:
        """Record the times of all programs from now on; with None, end that."""
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

    def set_weights(self, weights: Weights) -> None:
        """Use other weights of the same shapes from the next iteration on."""
        self.runner.set_weights(weights)

    def run_decode(self, plan: Plan) -> None:
        """Run a plan that has device rows alone and no prompts, as one program."""
        began = time.perf_counter_ns()
        self._give_pages(plan)
        width = table_width(plan.decode, (), self.buckets)
        rows = pack_rows(plan.decode, self._tables, self.buckets, sizes=self.buckets.decode_rows, width=width)
        self._lane = self.runner.decode(rows)
        self._ran("decode", self._lane.passed[0], began, rows=len(plan.decode))

    def begin(self, plan: Plan) -> None:
        """Bring in the device rows of a plan, if it has any."""
        self._give_pages(plan)
        self._lane = None
        if not plan.has_device_rows:
            return
        sizes = self.buckets.mixed_rows if plan.prefill else self.buckets.decode_rows
        width = table_width(plan.decode, plan.prefill, self.buckets)
        rows = pack_rows(plan.decode, self._tables, self.buckets, sizes=sizes, width=width)
        tiles = None
        if plan.prefill:
            tiles = pack_tiles(plan.prefill, self._tables, self.buckets, width=width)
        self._lane = self.runner.embed(tiles, rows, one_request=len(plan.prefill) <= 1)

    def _give_pages(self, plan: Plan) -> None:
        for landing in plan.landings:
            self._tables.replace(landing.slot, landing.device_pages, first=landing.first)
        self._tables.apply(plan.new_pages)

    def board(self, cohort: Cohort) -> ParkedRows:
        """Bring in the rows of a cohort that begins a token."""
        riders = self.runner.board(pack_cohort(cohort, self.buckets))
        return ParkedRows(cohort=cohort.id, x=riders.x, turn=riders.turn)

    def boundary(
        self, boundary: int, *, device: bool, cohort: ParkedRows | None, attended: jax.Array | None
    ) -> FromDevice | None:
        """Run post-attention of the layer behind a boundary and pre-attention of the one ahead."""
        began, lane = time.perf_counter_ns(), self._lane
        riders = riding = None
        if device:
            assert lane is not None
            riders = Riders(lane.passed[0], lane.turn, lane.attended)
        if cohort is not None:
            if attended is None and boundary:
                attended = self.runner.no_attention(len(cohort.x))
            riding = Riders(cohort.x, cohort.turn, attended)
        passed, hosted = self.runner.boundary(boundary, riders, riding)
        mark: dict[str, Any] = {"layer": min(boundary, self.num_layers - 1)}
        if cohort is not None:
            mark["cohort"] = cohort.cohort
        if passed is not None:
            assert lane is not None
            lane.passed, lane.attended = passed, None
            self._ran("linear", passed[0], began, **mark)
        if hosted is None:
            return None
        assert cohort is not None
        cohort.x, qkv = hosted
        if passed is None:
            self._ran("linear", cohort.x, began, **mark)
        return None if qkv is None else self._fetched(qkv, layer=boundary, cohort=cohort.cohort)

    def attend(self, layer: int) -> None:
        """Run the device rows' attention of a layer."""
        began, lane = time.perf_counter_ns(), self._lane
        assert lane is not None
        lane.attended = self.runner.attend(lane, layer)
        self._ran("attention", lane.attended, began, layer=layer)

    def layers(self, boundary: int, count: int) -> None:
        """Run `attend` and the boundary after it, for the device rows alone, so many times."""
        lane, end = self._lane, boundary + count
        assert lane is not None
        while boundary < end:
            began = time.perf_counter_ns()
            lane.passed, passes = self.runner.segment(lane, boundary, end)
            self._ran("layer", lane.passed[0], began, layer=boundary - 1, last_layer=boundary + passes - 2)
            boundary += passes

    def sample(
        self, plan: Plan, arriving: Sequence[ParkedRows], edits: Sequence[RowEdits | None] = ()
    ) -> Sampled | jax.Array:
        """Sample for the rows that rode to the end."""
        began, lane = time.perf_counter_ns(), self._lane
        if not plan.sampling_requests:
            return self._latest
        num_tiles, num_rows = (lane.num_tiles, lane.num_rows) if lane else (0, 0)
        places, batch = pack_samples(plan, self.buckets, tiles=num_tiles, device_rows=num_rows)
        if lane and not plan.prefill and not arriving:
            x = lane.passed[0]
        else:
            x = self.runner.no_ends(len(batch))
            parts = [lane and lane.passed[0], *(parked.x for parked in arriving)]
            for part, rows in zip(parts, places, strict=True):
                if part is not None:
                    x = self.runner.programs.collect(x, part, rows)
        rows = len(plan.sampling_requests)
        sampled = self.runner.sample(x, batch, self.runner.slots.mode(batch[:rows, 0]), edits)
        for leaf in jax.tree.leaves(sampled):
            leaf.copy_to_host_async()
        ends = {"iteration": plan.number, "strategy": plan.strategy, "rows": rows}
        self._ran("head", sampled.tokens, began, ends=ends, rows=rows)
        return sampled

    def head(self, rows: int) -> Sampled:
        """Run the head for rows that belong to nobody."""
        count = self.buckets.fit(self.buckets.samples, rows)
        mode = SamplingMode.covering([SamplingParams()])
        return self.runner.sample(self.runner.no_ends(count), padding_samples(count, self.buckets), mode)

    def fetch(self, end: Sampled | jax.Array, count: int) -> Sampled:
        """Wait for a plan to end."""
        if isinstance(end, jax.Array):
            end.block_until_ready()
            return Sampled(tokens=cast(jax.Array, np.zeros(0, np.int32)))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], end)

    def gather(self, layer: int, pages: Sequence[int]) -> FromDevice:
        """Copy pages of a layer as they are now."""
        return self._fetched(self.runner.gather(layer, padded_pages(pages, self.buckets, padding=0)), layer=layer)

    def scatter(self, layer: int, pages: Sequence[int], tiles: jax.Array) -> None:
        """Write pages of a layer."""
        ids = padded_pages(pages, self.buckets, padding=self.buckets.capacity.device_pages)
        self.runner.scatter(layer, ids, tiles)

    def deliver(self, array: np.ndarray) -> jax.Array:
        """Start sending an array to the device."""
        return jax.device_put(array, self._device)

    def idle_since(self) -> int | None:
        """Return since when all that was dispatched is known to have run; None if it has not.

        JAX tells whether a result is ready, but not since when: the answer is the present, or while a trace is
        recorded the moment at which the clock's thread noticed, if it has.
        """
        clock = self._clock
        if not self._latest.is_ready():
            return None
        noticed = clock.last_end() if clock is not None else None
        return time.perf_counter_ns() if noticed is None else noticed

    def _fetched(self, array: jax.Array, **args: int) -> FromDevice:
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
