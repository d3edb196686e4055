"""A device that computes nothing and takes as long as a profile says: the rest of the engine runs for real beside it.

Every operation begins when it has been dispatched, the operation before it has ended and its inputs have arrived, and
ends after the time that the profile gives it. Those are numbers on the clock of `time.perf_counter_ns`; only who asks
for a result waits, until that moment. Results are constants of the right shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import numpy as np

from ..sampling_params import SamplingParams
from ..scheduler import Cohort, Load, ModelShape, Plan, Profile, prompt_pairs
from ..scheduler.cost_model.component_times import Costs
from ..tracing.recorder import ITERATION, Recorder
from .batch import PageTables
from .buckets import Buckets
from .operation_queue import OperationQueue, wait_until
from .sampler import Sampled

TOKEN = 1
"""What every row samples."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Something that will be on the device at a moment."""

    at_ns: int


@dataclass(frozen=True, kw_only=True)
class _End:
    """When a plan's last operation ends."""

    at_ns: int


class EmulatedDevice:
    """Takes the time of a profile; see `JaxDevice` for what each method means.

    Args:
        profile: what operations take. Its padding should be `padding_of(buckets)`, since a device that runs compiled
            programs pays for the rows that batches are padded with.
        shape: sizes of the model.
        dtype: of the queries, keys and values that leave for the host.
        buckets: batch shapes, and the pages of the device KV cache.

    Attributes:
        skips_prompts: prompts take no time while True. For measuring how requests decode without waiting for the
            prompts that they begin with.
        in_no_time: nothing takes time while True: for coming to the situation that is to be measured.
    """

    def __init__(self, profile: Profile, shape: ModelShape, *, dtype: np.dtype, buckets: Buckets) -> None:
        self.profile = profile
        self.num_layers = profile.num_layers
        self.buckets = buckets
        self.skips_prompts = False
        self.in_no_time = False
        self._costs = Costs(profile)
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._out_share = (shape.num_heads + 2 * shape.num_kv_heads) / (2 * shape.num_heads + 2 * shape.num_kv_heads)
        self._queue = OperationQueue()
        self._to_host = OperationQueue()
        self._to_device = OperationQueue()
        self._constants: dict[tuple[int, ...], np.ndarray] = {}
        self._recorder: Recorder | None = None
        self.reset()

    @property
    def busy_ns(self) -> int:
        """Time of all operations dispatched so far."""
        return self._queue.busy_ns

    def reset(self) -> None:
        """Forget all requests."""
        self.tables = PageTables(self.buckets)
        self._parked: dict[int, int] = {}
        self._width = 0
        self._attention = 0.0
        self._began_ns = 0
        self._stepwise = False

    def record(self, recorder: Recorder | None) -> None:
        """Record the times of all operations from now on; none if None."""
        self._recorder = recorder

    def assign_slot(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Nothing is sampled, so nothing has to be known of a request."""

    def set_weights(self, weights: Any) -> None:
        """There are no weights."""

    def warm_up(self) -> None:
        """Nothing is compiled."""

    def run_decode(self, plan: Plan) -> None:
        """Run a plan that has device rows alone and no prompts."""
        self.begin(plan)
        self._stepwise = False
        layers = self.num_layers
        self._run("decode", layers * (self._costs.layer(self._width) + self._attention), rows=len(plan.decode))

    def begin(self, plan: Plan) -> None:
        """Note what the device rows of a plan take."""
        pairs = sum(prompt_pairs(len(chunk.tokens), chunk.start) for chunk in plan.prefill)
        load = Load(
            device_rows=len(plan.decode),
            device_kv_tokens=sum(row.length for row in plan.decode),
            prefill_tokens=0 if self.skips_prompts else plan.prefill_tokens,
            prefill_pairs=0 if self.skips_prompts else pairs,
        )
        seconds = self._costs.device_attention(load) + self._costs.prefill_attention(load)
        self._width, self._attention = self._costs.device_width(load), seconds / self.num_layers
        self._stepwise = bool(plan.cohorts)

    def board(self, cohort: Cohort) -> None:
        """Note the rows of a cohort that begins a token."""
        self._parked[cohort.id] = self.buckets.fit(self.buckets.host_rows, len(cohort.rows))

    def boundary(
        self, boundary: int, *, device: bool, cohort: int | None, attended: Any
    ) -> Callable[[], np.ndarray] | None:
        """Run a boundary; the function returned waits until a cohort's queries, keys and values are with the host."""
        rows = 0 if cohort is None else self._parked[cohort]
        width = rows + (self._width if device else 0)
        seconds = self._costs.linear(boundary, width)
        if cohort is not None:
            seconds += self._costs.boarding(rows)
        mark = {} if cohort is None else {"cohort": cohort}
        end = self._run("linear", seconds, after=attended.at_ns if attended else 0, layer=boundary, rows=width, **mark)
        if cohort is None or boundary == self.num_layers:
            return None
        shape = self._shape
        heads = shape.num_heads + 2 * shape.num_kv_heads
        leaving = (rows, heads, shape.head_dim)
        return self._send(end, self._out_share * self._costs.hop(rows), leaving, layer=boundary, cohort=cohort)

    def attend(self, layer: int) -> None:
        """Run the device rows' attention of a layer."""
        self._run("attention", self._attention, layer=layer)

    def layers(self, boundary: int, count: int) -> None:
        """Run the device rows' attention and the boundary after it, for them alone, so many times."""
        for reached in range(boundary, boundary + count):
            self._run("layer", self._attention + self._costs.linear(reached, self._width), layer=reached - 1)

    def head(self, rows: int) -> _End:
        """Run the head for rows that belong to nobody."""
        return _End(at_ns=self._run("head", self._costs.head(rows), rows=rows))

    def sample(self, plan: Plan) -> _End:
        """Run the head for all rows that rode to the end, and what an iteration takes beside its parts."""
        for cohort in plan.arriving:
            del self._parked[cohort.id]
        rows = len(plan.sampling_requests)
        seconds = self._costs.head(rows) + self._costs.overhead(cohorts=self._stepwise)
        end = self._run("head", seconds, rows=rows)
        if self._recorder is not None:
            args = {"iteration": plan.number, "strategy": plan.strategy, "rows": rows}
            self._recorder.span("device", ITERATION, min(self._began_ns or end, end), end, **args)
        self._began_ns = 0
        return _End(at_ns=end)

    def fetch(self, end: _End, count: int) -> Sampled:
        """Wait for a plan to end."""
        # The next plan is queued already, so that nobody minds if this wakes a little late.
        wait_until(end.at_ns, spin_ns=0)
        return Sampled(tokens=cast(jax.Array, np.full(count, TOKEN, np.int32)))

    def gather(self, layer: int, pages: Sequence[int]) -> Callable[[], np.ndarray]:
        """Copy pages of a layer; the function returned waits until they are with the host."""
        count, shape = self._moved(len(pages)), self._shape
        end = self._run("evict", self._copying(count), layer=layer, pages=len(pages))
        page = (shape.num_kv_heads, 2, self.buckets.page_size, shape.head_dim)
        return self._send(end, self._moving(count), (count, *page), layer=layer)

    def scatter(self, layer: int, pages: Sequence[int], tiles: Any) -> None:
        """Write pages of a layer once they have arrived."""
        after = tiles.at_ns if tiles is not None else 0
        self._run("land", self._copying(self._moved(len(pages))), after=after, layer=layer, pages=len(pages))

    def deliver(self, array: np.ndarray) -> Arrival:
        """Send an attention or pages to the device. May be called from any thread, but not from several at once."""
        moves = array.ndim == 5
        rows = len(array)
        seconds = self._moving(rows) if moves else (1 - self._out_share) * self._costs.hop(rows)
        _, end = self._to_device.run(0.0 if self.in_no_time else seconds)
        return Arrival(at_ns=end)

    def no_attention(self, rows: int) -> Arrival:
        """Return what stands for an attention that could not be had."""
        return Arrival(at_ns=0)

    def forget_cohorts(self) -> None:
        """Drop the rows of cohorts that will not board again."""
        self._parked.clear()

    def take_new_shapes(self) -> bool:
        """Nothing is compiled for any shape."""
        return False

    def idle_since(self) -> int | None:
        """Return when the last operation ended (`time.perf_counter_ns`); None if one has not."""
        free = self._queue.free_ns
        return free if free <= time.perf_counter_ns() else None

    def _run(self, name: str, seconds: float, *, after: int = 0, **args: int) -> int:
        begin, end = self._queue.run(0.0 if self.in_no_time else seconds, after)
        if self._recorder is not None:
            self._recorder.span("device", name, begin, end, **args)
        self._began_ns = self._began_ns or begin
        return end

    def _send(self, after: int, seconds: float, shape: tuple[int, ...], **args: int) -> Callable[[], np.ndarray]:
        begin, arrival = self._to_host.run(0.0 if self.in_no_time else seconds, after)
        if self._recorder is not None:
            self._recorder.span("transfers", "to host", begin, arrival, rows=shape[0], **args)
        return partial(_received, arrival, self._constant(shape))

    def _constant(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the same numbers every time: how long attention takes does not depend on them."""
        if shape not in self._constants:
            numbers = np.random.default_rng(0).standard_normal(shape, np.float32)
            self._constants[shape] = numbers.astype(self._dtype)
        return self._constants[shape]

    def _moved(self, pages: int) -> int:
        return self.buckets.fit(self.buckets.moved_pages, pages)

    def _moving(self, pages: int) -> float:
        """Return the time of one layer's pages on the link."""
        return self._costs.migration(pages * self.buckets.page_size) / self.num_layers

    def _copying(self, pages: int) -> float:
        """Return the time in which the device reads and writes one layer's pages: twice that of attending to them."""
        return 2 * self.profile.device_attention.tokens(pages * self.buckets.page_size) / self.num_layers


def _received(at_ns: int, array: np.ndarray) -> np.ndarray:
    wait_until(at_ns)
    return array
