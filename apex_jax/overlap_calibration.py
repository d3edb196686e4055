"""The host's part of a profile, measured beside a running emulated device.

In a tight loop the same jobs are faster by up to half: there nobody else wants the interpreter, the caches and the
cores, and no thread has to be woken. So they are timed where they will run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .overlap_population import REST, Population, Window
from .scheduler import AttentionTime, CostModel, Curve, Decision, Load, Profile
from .scheduler.candidates import even

SYNCHRONOUS_ROWS = (4, 16)
"""Cohorts that the dispatching thread waits for at every layer."""

COHORT_ROWS = (16, 32, 64, 128)
"""Cohorts, three at a time, that have their attention computed while the device goes on."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured of the host.

    Attributes:
        model: predicts with it.
        jobs: (KV tokens, seconds) of the attention of one layer.
        hops: (rows, seconds) of a handover to the host and back.
        device_rows: requests that were on the device meanwhile, on average.
    """

    model: CostModel
    jobs: tuple[tuple[float, float], ...]
    hops: tuple[tuple[float, float], ...]
    device_rows: float


def calibrate(profile: Profile, population: Population, *, host_requests: int, seconds: float) -> Calibration:
    """Measure the host's part of a profile.

    Args:
        profile: the device's part.
        population: runs the measurements; its requests are replaced.
        host_requests: how many there are on the host meanwhile.
        seconds: of each measurement, of which there are up to eight.
    """
    population.fill(host_requests, context=population.context)
    jobs, hops, windows = [], [], []
    for rows in SYNCHRONOUS_ROWS:
        window = _run(population, Decision(strategy="layer_sync", lanes=(rows,)), warm_up=4, seconds=seconds)
        jobs.append((rows * window.host_context, window.job_seconds))
        hops.append((rows, _hop(profile, window, rows)))
        windows.append(window)
    lanes = [(rows,) * 3 for rows in COHORT_ROWS if 3 * rows <= host_requests]
    # Then everybody rides, in two cohorts and in one.
    lanes += [even(host_requests, count) for count in (2, 1)]
    for cohorts in lanes:
        decision = Decision(strategy="async_overlap", lanes=cohorts)
        window = _run(population, decision, warm_up=profile.num_layers + 4, seconds=seconds)
        jobs.append((sum(cohorts) / len(cohorts) * window.host_context, window.job_seconds))
        windows.append(window)
    measured = replace(
        profile,
        key=replace(profile.key, host="measured beside the emulated device"),
        host_attention=AttentionTime(rows=Curve.constant(0.0), tokens=Curve.fit(jobs)),
        hop=Curve.fit(hops),
    )
    return Calibration(
        model=CostModel(measured),
        jobs=tuple(jobs),
        hops=tuple(hops),
        device_rows=sum(window.device_rows for window in windows) / len(windows),
    )


def _run(population: Population, decision: Decision, *, warm_up: int, seconds: float) -> Window:
    # Cohorts of another size that are still under way would go on beside the new ones for ever.
    population.run(REST, population.device.num_layers + 2)
    population.run(decision, warm_up)
    return population.measure(seconds)


def _hop(profile: Profile, window: Window, rows: int) -> float:
    """Return what is left of an iteration of layer_sync beside the device's linear work and the host's attention."""
    load = Load(device_rows=round(window.device_rows), device_kv_tokens=0.0)
    device = CostModel(profile).steady("layer_sync", load, (rows,), window.host_context).device
    waiting = window.iteration_s - device.total
    return max(0.0, waiting / profile.num_layers - window.job_seconds)
