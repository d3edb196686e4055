"""The device alone; host requests rest. The baseline of every comparison.

    L * (S + a)

for L layers, each with a pass S over the weights and device attention a.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cost_model.component_times import CohortCost
from ..cost_model.side import A, Side
from .base import Strategy
from .layer_sync import LAYER_SYNC


class DeviceOnly(Strategy):
    """No cohorts: those that are under way drain, one boundary in each iteration."""

    name = "device_only"
    about = "the device alone; host requests rest"
    through = False

    def most_cohorts(self, num_layers: int) -> int:
        """Return 0."""
        return 0

    def spread(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return no cohorts."""
        return ()

    def without_device(self, lanes: Sequence[int], rows: int) -> tuple[Strategy, Sequence[int]]:
        """Return that all ride: nothing else would move them."""
        return LAYER_SYNC, (rows,)

    def closed_form(self, side: Side[A], cohorts: Sequence[CohortCost]) -> tuple[A, A, A]:
        """Return the device's own iteration, which is all there is."""
        return side.alone, side.amounts.host_attention(0.0), side.alone


DEVICE_ONLY = DeviceOnly()
