"""A device that computes nothing and takes as long as a profile says: the rest of the engine runs for real beside it.

Every operation begins when it has been dispatched, the operation before it has ended and its inputs have arrived, and
ends after the time that the profile gives it. Those are numbers on the clock of `time.perf_counter_ns`; only who asks
for a result waits, until that moment. Results are constants of the right shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import jax
import numpy as np

from ..sampling_params import SamplingParams
from ..scheduler import Cohort, Load, ModelShape, Plan, Profile, plan_pairs
from ..scheduler.cost_model.component_times import Costs
from ..tracing.recorder import ITERATION, Recorder
from .batch import Buckets
from .device import FromDevice
from .logit_edits import RowEdits
from .operation_queue import OperationQueue, wait_until
from .sampler import Sampled

TOKEN = 1
"""What every row samples."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When something will have ended or arrived on the device."""

    at_ns: int


@dataclass(frozen=True, kw_only=True)
class ParkedCount:
    """A cohort between two boundaries: its id, and its rows with padding."""

    cohort: int
    rows: int


def device_load(plan: Plan) -> Load:
    """Return what device rows and prompts of a plan take, in counts."""
    return replace(decode_load(plan), prefill_tokens=plan.prefill_tokens, prefill_pairs=plan_pairs(plan))


def decode_load(plan: Plan) -> Load:
    """Return the same without the prompts, for measuring how requests decode without waiting for these."""
    return Load(device_rows=len(plan.decode), device_kv_tokens=sum(plan.attended(row.length) for row in plan.decode))


class EmulatedDevice:
    """Takes the time of a profile; see `Device` for what each method means.

    Args:
        profile: what operations take. Its padding should be `padding_of(buckets)`, since a device that runs compiled
            programs pays for the rows that batches are padded with.
        shape: sizes of the model.
        dtype: of the queries, keys and values that leave for the host.
        buckets: batch shapes, and the pages of the device KV cache.

    Attributes:
        costs: what operations take; may be replaced between two plans.
        load_of: counts what the device has to do of a plan; may be replaced as well.
    """

    def __init__(self, profile: Profile, shape: ModelShape, *, dtype: np.dtype, buckets: Buckets) -> None:
        self.num_layers = profile.num_layers
        self.buckets = buckets
        self.costs = Costs(profile)
        self.load_of: Callable[[Plan], Load] = device_load
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
        self._width = 0
        self._attention = 0.0
        self._began_ns = 0
        self._stepwise = False

    def record(self, recorder: Recorder | None) -> None:
        """Record the times of all operations from now on; none if None."""
        self._recorder = recorder

    def assign_slot(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Nothing is sampled, so nothing has to be known of a request."""

    def warm_up(self) -> None:
        """Nothing is compiled."""

    def run_decode(self, plan: Plan) -> None:
        """Run a plan that has device rows alone and no prompts."""
        self.begin(plan)
        self._stepwise = False
        layers = self.num_layers
        self._run("decode", layers * (self.costs.layer(self._width) + self._attention), rows=len(plan.decode))

    def begin(self, plan: Plan) -> None:
        """Note what the device rows of a plan take."""
        load = self.load_of(plan)
        seconds = self.costs.device_attention(load) + self.costs.prefill_attention(load)
        self._width, self._attention = self.costs.device_width(load), seconds / self.num_layers
        self._stepwise = bool(plan.cohorts)

    def board(self, cohort: Cohort) -> ParkedCount:
        """Note the rows of a cohort that begins a token."""
        return ParkedCount(cohort=cohort.id, rows=self.buckets.fit(self.buckets.host_rows, len(cohort.rows)))

    def boundary(
        self, boundary: int, *, device: bool, cohort: ParkedCount | None, attended: Moment | None
    ) -> FromDevice | None:
        """Run a boundary; the function returned waits until a cohort's queries, keys and values are with the host."""
        rows = 0 if cohort is None else cohort.rows
        width = rows + (self._width if device else 0)
        seconds = self.costs.linear(boundary, width)
        if cohort is not None:
            seconds += self.costs.boarding(rows)
        mark = {} if cohort is None else {"cohort": cohort.cohort}
        end = self._run("linear", seconds, after=attended.at_ns if attended else 0, layer=boundary, rows=width, **mark)
        if cohort is None or boundary == self.num_layers:
            return None
        shape = self._shape
        heads = shape.num_heads + 2 * shape.num_kv_heads
        leaving = (rows, heads, shape.head_dim)
        return self._send(end, self._out_share * self.costs.hop(rows), leaving, layer=boundary, **mark)

    def attend(self, layer: int) -> None:
        """Run the device rows' attention of a layer."""
        self._run("attention", self._attention, layer=layer)

    def layers(self, boundary: int, count: int) -> None:
        """Run the device rows' attention and the boundary after it, for them alone, so many times."""
        for reached in range(boundary, boundary + count):
            self._run("layer", self._attention + self.costs.linear(reached, self._width), layer=reached - 1)

    def head(self, rows: int) -> Moment:
        """Run the head for rows that belong to nobody."""
        return Moment(at_ns=self._run("head", self.costs.head(rows), rows=rows))

    def sample(self, plan: Plan, arriving: Sequence[ParkedCount], edits: Sequence[RowEdits | None] = ()) -> Moment:
        """Run the head for all rows that rode to the end, and what an iteration takes beside its parts."""
        rows = len(plan.sampling_requests)
        seconds = self.costs.head(rows) + self.costs.overhead(cohorts=self._stepwise)
        end = self._run("head", seconds, rows=rows)
        if self._recorder is not None:
            args = {"iteration": plan.number, "strategy": plan.strategy, "rows": rows}
            self._recorder.span("device", ITERATION, min(self._began_ns or end, end), end, **args)
        self._began_ns = 0
        return Moment(at_ns=end)

    def fetch(self, end: Moment, count: int) -> Sampled:
        """Wait for a plan to end."""
        # The next plan is queued already, so that nobody minds if this wakes a little late.
        wait_until(end.at_ns, spin_ns=0)
        return Sampled(tokens=cast(jax.Array, np.full(count, TOKEN, np.int32)))

    def gather(self, layer: int, pages: Sequence[int]) -> FromDevice:
        """Copy pages of a layer; the function returned waits until they are with the host."""
        count, shape = self._moved(len(pages)), self._shape
        end = self._run("evict", self._copying(count), layer=layer, pages=len(pages))
        page = (shape.num_kv_heads, 2, self.buckets.page_size, shape.head_dim)
        return self._send(end, self._moving(count), (count, *page), layer=layer)

    def scatter(self, layer: int, pages: Sequence[int], tiles: Moment) -> None:
        """Write pages of a layer once they have arrived."""
        self._run("land", self._copying(self._moved(len(pages))), after=tiles.at_ns, layer=layer, pages=len(pages))

    def deliver(self, array: np.ndarray) -> Moment:
        """Send an attention or pages to the device."""
        moves = array.ndim == 5
        rows = len(array)
        seconds = self._moving(rows) if moves else (1 - self._out_share) * self.costs.hop(rows)
        _, end = self._to_device.run(seconds)
        return Moment(at_ns=end)

    def take_new_shapes(self) -> bool:
        """Nothing is compiled for any shape."""
        return False

    def idle_since(self) -> int | None:
        """Return when the last operation ended (`time.perf_counter_ns`); None if one has not."""
        free = self._queue.free_ns
        return free if free <= time.perf_counter_ns() else None

    def _run(self, name: str, seconds: float, *, after: int = 0, **args: int) -> int:
        begin, end = self._queue.run(seconds, after)
        if self._recorder is not None:
            self._recorder.span("device", name, begin, end, **args)
        self._began_ns = self._began_ns or begin
        return end

    def _send(self, after: int, seconds: float, shape: tuple[int, ...], **args: int) -> FromDevice:
        begin, arrival = self._to_host.run(seconds, after)
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
        return self.costs.migration(pages * self.buckets.page_size) / self.num_layers

    def _copying(self, pages: int) -> float:
        """Return the time in which the device reads and writes one layer's pages: twice that of attending to them."""
        seconds = self.costs.profile.device_attention.tokens(pages * self.buckets.page_size)
        return 2 * seconds * self.costs.factors.device_attention / self.num_layers


def _received(at_ns: int, array: np.ndarray) -> np.ndarray:
    wait_until(at_ns)
    return array
