"""Host rows go through all layers with the batch: the host attends in layer l while the device does.

    L * (S + max(a, H + h))

for L layers, each with a pass S over the weights, device attention a, the cohort's handover H and its host attention h.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cost_model.component_times import CohortCost
from ..cost_model.prediction import Timing
from ..cost_model.side import A, Side
from .base import Strategy


class LayerSync(Strategy):
    """One cohort, which rides all boundaries of every iteration with the device's rows."""

    name = "layer_sync"
    about = "host rows go through every layer with the batch; the host attends while the device does"

    def most_cohorts(self, num_layers: int) -> int:
        """Return 1."""
        return 1

    def spread(self, rows: int, cohorts: int, share: float) -> tuple[int, ...]:
        """Return one cohort."""
        return (rows,)

    def excess(self, timing: Timing) -> float:
        """Return for how long the device waits: the host has only as long as the device attends."""
        return timing.device_wait_s

    def closed_form(self, side: Side[A], cohorts: Sequence[CohortCost]) -> tuple[A, A, A]:
        """Return passes with attention on the device, the jobs, and passes with these in between."""
        (cohort,) = cohorts
        passes = side.passes(cohort) + side.head(cohort.rows) + side.overhead
        return passes + side.attention, side.jobs(cohort, side.num_layers), passes + side.waits(cohort)


LAYER_SYNC = LayerSync()
