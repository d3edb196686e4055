"""What an executor asks of a device that runs a model's layers.

A device is told what to do next and returns at once; what it hands out stands for results that are under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from ..sampling_params import SamplingParams
from ..scheduler import Cohort, Plan
from ..tracing.recorder import Recorder
from .batch import Buckets
from .logit_edits import RowEdits
from .sampler import Sampled

FromDevice = Callable[[], np.ndarray]
"""Waits for the device to have computed something, and returns a copy of it in host memory."""

Parked = TypeVar("Parked")
"""The rows of a cohort between two boundaries."""

Sent = TypeVar("Sent")
"""An array of the host that is on its way to the device."""

End = TypeVar("End")
"""The end of a plan, with its samples."""


class Device(Protocol[Parked, Sent, End]):
    """Runs the linear layers of all rows and the attention of those that are its own.

    Attributes:
        buckets: batch shapes, and the pages of its KV cache.
        num_layers: L.
    """

    buckets: Buckets
    num_layers: int

    def reset(self) -> None:
        """Forget all requests."""
        ...

    def warm_up(self) -> None:
        """Compile every program that any plan can need; changes no request."""
        ...

    def assign_slot(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Give a slot to a request before the plan with its first chunk is submitted.

        Args:
            slot: row of the per-request state.
            params: the request's sampling settings.
            seed: uint32 [2], see `seed_words`.
            tokens: prompt and output so far, which a repetition penalty counts.
        """
        ...

    def run_decode(self, plan: Plan) -> None:
        """Run a plan that has device rows alone and no prompts, as one program."""
        ...

    def begin(self, plan: Plan) -> None:
        """Bring in the device rows of a plan that goes from boundary to boundary, if it has any."""
        ...

    def board(self, cohort: Cohort) -> Parked:
        """Bring in the rows of a cohort that begins a token."""
        ...

    def boundary(
        self, boundary: int, *, device: bool, cohort: Parked | None, attended: Sent | None
    ) -> FromDevice | None:
        """Run post-attention of the layer behind a boundary and pre-attention of the one ahead.

        Args:
            boundary: 0 to L.
            device: the plan's device rows ride; unless at 0, `attend` has run for the layer behind.
            cohort: the cohort that rides, if any; it goes on from here.
            attended: what `deliver` returned for the cohort's attention [n, N, H] of the layer behind; None at 0, and
                where it could not be had.

        Returns:
            For a cohort at a boundary below L, its queries, keys and values [n, N + 2K, H].
        """
        ...

    def attend(self, layer: int) -> None:
        """Run the device rows' attention of a layer."""
        ...

    def layers(self, boundary: int, count: int) -> None:
        """Run `attend` and the boundary after it, for the device rows alone, so many times.

        Args:
            boundary: the first of the boundaries, 1 to L.
            count: how many.
        """
        ...

    def sample(self, plan: Plan, arriving: Sequence[Parked], edits: Sequence[RowEdits | None] = ()) -> End:
        """Sample for the rows that rode to the end.

        Args:
            plan: what has been dispatched.
            arriving: the rows of its arriving cohorts.
            edits: for its `sampling_requests`, in order; none of them has any if empty.
        """
        ...

    def head(self, rows: int) -> End:
        """Run the head for rows that belong to nobody, as many as a batch of so many samples has."""
        ...

    def fetch(self, end: End, count: int) -> Sampled:
        """Wait for a plan to end; samples as numpy arrays with `count` rows."""
        ...

    def gather(self, layer: int, pages: Sequence[int]) -> FromDevice:
        """Copy pages of a layer as they are now: [M, K, 2, S, H] with padding."""
        ...

    def scatter(self, layer: int, pages: Sequence[int], tiles: Sent) -> None:
        """Write pages of a layer; `tiles` is what `deliver` returned for [M, K, 2, S, H]."""
        ...

    def deliver(self, array: np.ndarray) -> Sent:
        """Start sending an array to the device. May be called from any thread, but not from several at once."""
        ...

    def record(self, recorder: Recorder | None) -> None:
        """Record the times of all programs from now on; with None, end that and complete what has been recorded."""
        ...

    def take_new_shapes(self) -> bool:
        """Return whether a batch of a shape that had not run before has been dispatched since the last call."""
        ...

    def idle_since(self) -> int | None:
        """Return since when all that was dispatched is known to have run (`time.perf_counter_ns`); None if it has not.

        May be called from any thread.
        """
        ...
