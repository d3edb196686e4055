"""The time of one plan, walked pass by pass along the device's and the host's time lines.

The device runs the passes of a plan in order, and after a pass with device rows their attention of that layer. After
every pass with a cohort, up to boundary L - 1, the cohort's attention of that layer becomes a job of the host, which
can begin a hop later and takes jobs in the order in which they came. A cohort rides its next pass when its job is
done, in this iteration or in a later one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .component_times import Costs
from .prediction import CohortLoad, Load, Terms

LINEAR, DEVICE_ATTENTION, PREFILL_ATTENTION, HOST_ATTENTION, TRANSFER, OVERHEAD = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What an iteration finds under way, in seconds after its start.

    Attributes:
        host_free: when the host has done all its jobs.
        ready: when a parked cohort's job is done, by cohort; the others' are.
    """

    host_free: float = 0.0
    ready: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """An iteration's times.

    Attributes:
        iteration_s: from start to end.
        device, host: seconds in which either is occupied, by term.
        critical: the chain of things that waited for each other up to the end, by term.
        clock: what the next iteration finds.
    """

    iteration_s: float
    device: Terms
    host: Terms
    critical: Terms
    clock: Clock


def walk(costs: Costs, load: Load, clock: Clock | None = None) -> Walked:
    """Return the times of an iteration that begins with `clock` (nothing under way if None)."""
    return _Walk(costs, load, Clock() if clock is None else clock).run()


class _Time:
    """A moment, and the chain of things it had to wait for, by term."""

    __slots__ = ("chain", "now")

    def __init__(self, now: float, chain: list[float]) -> None:
        self.now = now
        self.chain = chain

    def after(self, term: int, seconds: float) -> _Time:
        chain = self.chain.copy()
        chain[term] += seconds
        return _Time(self.now + seconds, chain)


class _Walk:
    def __init__(self, costs: Costs, load: Load, clock: Clock) -> None:
        self.costs = costs
        self.load = load
        self.last = costs.num_layers
        self.width = costs.device_width(load)
        self.attention = costs.device_attention(load) / self.last
        self.prompts = costs.prefill_attention(load) / self.last
        self.time = _Time(0.0, [0.0] * 6)
        self.device = [0.0] * 6
        self.host = [0.0] * 6
        self.host_free = _inherited(clock.host_free)
        riding = {cohort.id for cohort in load.cohorts}
        self.jobs = {cohort: _inherited(seconds) for cohort, seconds in clock.ready.items()}
        self.resting = {cohort: seconds for cohort, seconds in clock.ready.items() if cohort not in riding}

    def run(self) -> Walked:
        self._move(self.load.evicted_tokens)
        boundary = 0
        while boundary <= self.last:
            riders = [c for c in self.load.cohorts if c.first <= boundary <= c.last]
            if riders or boundary in (0, self.last):
                self._boundary(boundary, riders)
                boundary += 1
            else:
                boundary = self._skip(boundary)
        arriving = sum(cohort.rows for cohort in self.load.cohorts if cohort.last == self.last)
        self._spend(LINEAR, self.costs.head(self.load.device_tokens + arriving))
        self._spend(OVERHEAD, self.costs.overhead(cohorts=bool(self.load.cohorts)))
        self._move(self.load.fetched_tokens)
        end = self.time.now
        parked = {c.id: self.jobs[c.id].now for c in self.load.cohorts if c.last < self.last}
        ready = {cohort: then - end for cohort, then in {**self.resting, **parked}.items() if then > end}
        return Walked(
            iteration_s=end,
            device=Terms(*self.device),
            host=Terms(*self.host),
            critical=Terms(*self.time.chain),
            clock=Clock(host_free=max(0.0, self.host_free.now - end), ready=ready),
        )

    def _boundary(self, boundary: int, riders: list[CohortLoad]) -> None:
        if self.width:
            self._pass(boundary, riders[0] if riders else None, with_device=True)
            if boundary < self.last:
                self._attend(1)
            riders = riders[1:]
        for rider in riders:
            self._pass(boundary, rider, with_device=False)

    def _skip(self, boundary: int) -> int:
        """Run the passes of device rows alone up to the next boundary with a cohort."""
        until = min((c.first for c in self.load.cohorts if c.first > boundary), default=self.last)
        if self.width:
            self._spend(LINEAR, (until - boundary) * self.costs.layer(self.width))
            self._attend(until - boundary)
        return until

    def _pass(self, boundary: int, rider: CohortLoad | None, *, with_device: bool) -> None:
        width, own = self.width if with_device else 0, 0
        if rider is not None:
            own = self.costs.host_width(rider.width or rider.rows)
            width += own
            self._wait(rider)
            self._spend(TRANSFER, self.costs.boarding(own))
        self._spend(LINEAR, self.costs.linear(boundary, width))
        if rider is not None and boundary < self.last:
            self._submit(rider, own)

    def _wait(self, rider: CohortLoad) -> None:
        job = self.jobs.pop(rider.id, None)
        if job is not None and job.now > self.time.now:
            self.time = _Time(job.now, job.chain.copy())

    def _submit(self, rider: CohortLoad, width: int) -> None:
        arrived = self.time.after(TRANSFER, self.costs.hop(width))
        begin = arrived if arrived.now >= self.host_free.now else self.host_free
        seconds = self.costs.host_attention(rider.rows, rider.kv_tokens)
        self.host_free = self.jobs[rider.id] = begin.after(HOST_ATTENTION, seconds)
        self.host[HOST_ATTENTION] += seconds

    def _move(self, tokens: int) -> None:
        seconds = self.costs.migration(tokens)
        if seconds:
            begin = self.host_free if self.host_free.now > self.time.now else self.time
            self.host_free = begin.after(TRANSFER, seconds)
            self.host[TRANSFER] += seconds

    def _attend(self, layers: int) -> None:
        self._spend(DEVICE_ATTENTION, layers * self.attention)
        self._spend(PREFILL_ATTENTION, layers * self.prompts)

    def _spend(self, term: int, seconds: float) -> None:
        self.time.now += seconds
        self.time.chain[term] += seconds
        self.device[term] += seconds


def _inherited(seconds: float) -> _Time:
    """A moment that an earlier iteration's jobs lead up to."""
    chain = [0.0] * 6
    chain[HOST_ATTENTION] = seconds
    return _Time(seconds, chain)
