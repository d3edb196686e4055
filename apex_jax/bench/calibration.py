"""The host's part of a profile, measured beside a running emulated device.

In a tight loop the same jobs are faster by up to half: there nobody else wants the interpreter, the caches and the
cores, and no thread has to be woken. So they are timed where they will run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..scheduler import AttentionTime, CostModel, Curve, Decision, Load, Profile
from ..scheduler.cohorts import even
from ..scheduler.strategies import ASYNC_OVERLAP, LAYER_SYNC
from ..scheduler.strategies.steady import steady
from .steady_load import REST, Interval, SteadyLoad

SYNCHRONOUS_ROWS = (4, 16)
"""Cohorts that the dispatching thread waits for at every layer."""

COHORT_ROWS = (16, 32, 64, 128)
"""Cohorts, three at a time, that have their attention computed while the device goes on."""

PASSES = 2
"""Of a measurement through all sizes: a machine that is slow for a second is not to count."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured of the host.

    Attributes:
        jobs: (rows of mean context, seconds) of the attention of one layer.
        delays_s: of a handover to the host and back, beyond what the device's profile has for it.
        device_rows: requests that were on the device meanwhile, on average.
    """

    jobs: tuple[tuple[float, float], ...]
    delays_s: tuple[float, ...]
    device_rows: float

    def plus(self, other: Calibration) -> Calibration:
        """Return both together."""
        return Calibration(
            jobs=self.jobs + other.jobs,
            delays_s=self.delays_s + other.delays_s,
            device_rows=(self.device_rows + other.device_rows) / 2,
        )

    def model(self, profile: Profile, *, context: int) -> CostModel:
        """Return a cost model with the device's part of a profile and medians of this.

        Threads and the interpreter delay a handover whatever its rows, so that what is measured with a few of them is
        added to the device's time for any number.
        """
        found: dict[float, list[float]] = {}
        for rows, seconds in self.jobs:
            found.setdefault(rows, []).append(seconds)
        delay = statistics.median(self.delays_s)
        attention = Curve.fit((rows * context, statistics.median(times)) for rows, times in found.items())
        measured = replace(
            profile,
            key=replace(profile.key, host="measured beside the emulated device"),
            host_attention=AttentionTime(rows=Curve.constant(0.0), tokens=attention),
            hop=Curve(points=tuple((rows, seconds + delay) for rows, seconds in profile.hop.points)),
        )
        return CostModel(measured)


def calibrate(profile: Profile, steady_load: SteadyLoad, *, host_requests: int, seconds: float) -> Calibration:
    """Measure the host's part of a profile.

    Args:
        profile: the device's part.
        steady_load: runs the measurements; its requests are replaced.
        host_requests: how many there are on the host meanwhile.
        seconds: of each size of cohorts.
    """
    steady_load.fill(host_requests, context=steady_load.context)
    # At the end everybody rides, in two cohorts and in one.
    sizes = [(rows,) * 3 for rows in COHORT_ROWS if 3 * rows <= host_requests]
    sizes += [even(host_requests, count) for count in (2, 1)]
    jobs, delays, device_rows = [], [], []
    for _ in range(PASSES):
        for rows in SYNCHRONOUS_ROWS:
            decision = Decision(strategy=LAYER_SYNC.name, lanes=(rows,))
            interval = _run(steady_load, decision, warm_up=4, seconds=seconds / PASSES)
            jobs.append(_job(steady_load, decision.lanes, interval))
            delays.append(_delay(profile, interval, rows))
            device_rows.append(interval.device_rows)
        for lanes in sizes:
            decision = Decision(strategy=ASYNC_OVERLAP.name, lanes=lanes)
            interval = _run(steady_load, decision, warm_up=profile.num_layers + 4, seconds=seconds / PASSES)
            jobs.append(_job(steady_load, lanes, interval))
            device_rows.append(interval.device_rows)
    return Calibration(jobs=tuple(jobs), delays_s=tuple(delays), device_rows=statistics.mean(device_rows))


def _run(steady_load: SteadyLoad, decision: Decision, *, warm_up: int, seconds: float) -> Interval:
    # Cohorts of another size that are still under way would go on beside the new ones for ever.
    steady_load.run(REST, steady_load.device.num_layers + 2)
    steady_load.run(decision, warm_up)
    return steady_load.measure(seconds, least_jobs=1)


def _job(steady_load: SteadyLoad, lanes: Sequence[int], interval: Interval) -> tuple[float, float]:
    """Return the mean rows of a job, and its time as it would be at the mean context that was asked for."""
    return sum(lanes) / len(lanes), interval.job_seconds * steady_load.context / interval.host_context


def _delay(profile: Profile, interval: Interval, rows: int) -> float:
    """Return what is left of a layer of layer_sync beside the device's time, the host's attention and the transfers."""
    model = CostModel(profile)
    load = Load(device_rows=round(interval.device_rows), device_kv_tokens=0.0)
    device = steady(model.costs, LAYER_SYNC.name, load, (rows,), interval.host_context).device
    waiting = (interval.iteration_s - device.total) / profile.num_layers
    return max(0.0, waiting - interval.job_seconds - model.costs.hop(model.costs.host_width(rows)))
