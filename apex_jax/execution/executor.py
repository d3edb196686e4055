"""Runs plans: tells the device which boundary comes next, and the host worker what to attend to meanwhile.

The executor decides nothing. It walks the stages of a plan in order; the device's queue keeps that order, and the host
worker's queue keeps the order in which jobs were handed over, so that no further synchronisation is needed: the
executor waits in one place only, where a cohort boards and the host's result is not there yet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic

import numpy as np

from ..host_offload import HostJob, HostWorker
from ..sampling_params import SamplingParams
from ..scheduler import Cohort, Plan, Stage
from ..tracing.recorder import Recorder
from .batch import Buckets, PageTables, cohort_lengths, pack_cohort
from .device import Device, End, FromDevice, Parked, Sent
from .logit_edits import RowEdits
from .page_moves import HostCounters, PageMoves, record_job
from .sampler import Sampled


@dataclass(frozen=True, kw_only=True)
class Submitted(Generic[End]):
    """A plan under way.

    Attributes:
        plan: what was submitted.
        end: what `Device.sample` returned.
        began_ns: when its dispatch began (`time.perf_counter_ns`).
        wait_ns: how long the executor waited in it for the host while the device is known to have had nothing to do.
        compiled: a program was compiled for it, so that its time says nothing.
    """

    plan: Plan
    end: End
    began_ns: int
    wait_ns: int
    compiled: bool


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What the host could not do.

    Attributes:
        requests: those whose jobs failed, with what went wrong; their samples mean nothing.
        host_lost: what made the host lose pages of every request, if that happened.
    """

    requests: dict[int, BaseException]
    host_lost: BaseException | None


@dataclass(kw_only=True)
class _Riding(Generic[Parked]):
    """A cohort whose token is under way.

    Attributes:
        parked: its rows on the device.
        idle_ns: since when the device had nothing to do as the job got its input; None if it had.
    """

    parked: Parked
    request_ids: tuple[int, ...]
    table: np.ndarray
    job: HostJob | None = None
    idle_ns: int | None = None
    failed: bool = False


@dataclass(kw_only=True)
class Dispatching:
    """A plan of which the model's part has been dispatched, or is being."""

    plan: Plan
    lengths: dict[int, np.ndarray]
    began_ns: int
    wait_ns: int = 0
    new_shapes: bool = False


class Executor(Generic[Parked, Sent, End]):
    """Runs plans on a device and, if there is a host tier, a host worker.

    Args:
        device: runs the linear layers and the device rows' attention.
        worker: attends for host rows; None without a host tier.
    """

    def __init__(self, device: Device[Parked, Sent, End], worker: HostWorker | None = None) -> None:
        held, promised = worker.num_pages if worker is not None else 0, device.buckets.capacity.host_pages
        if held != promised:
            raise ValueError(f"the host worker has {held} pages; the capacity says {promised}")
        self.device = device
        self.worker = worker
        self.recorder: Recorder | None = None
        self.host = HostCounters()
        self._host_rows: set[int] = set()
        self.moves = PageMoves(device, worker)
        if worker is not None:
            worker.observers.append(self._note)
        self._start_empty()

    def _start_empty(self) -> None:
        self._host_tables = PageTables(self.device.buckets)
        self._cohorts: dict[int, _Riding[Parked]] = {}
        self.moves.clear()
        self._failures: dict[int, BaseException] = {}
        self._losses = self.worker.losses if self.worker else 0

    @property
    def buckets(self) -> Buckets:
        return self.device.buckets

    @property
    def is_idle(self) -> bool:
        """Whether nothing of any request is under way, or has failed and not been told."""
        return self.moves.is_idle and not (self._cohorts or self._failures)

    def reset(self) -> None:
        """Forget all requests and whatever is under way."""
        if self.worker is not None:
            self.worker.discard()
        self._start_empty()
        self.device.reset()

    def rest(self) -> None:
        """End the host worker's thread, once what it was given is done; the next job starts another."""
        if self.worker is not None:
            self.worker.stop()
        # Failures too: they must not reach the requests of another time.
        self._start_empty()

    def warm_up(self) -> None:
        """Compile every program that any plan can need; changes no request."""
        self.device.warm_up()
        if self.worker is not None:
            sizes = self.buckets
            self.worker.warm_up(rows=sizes.host_rows, width=sizes.table_width, pages=sizes.moved_pages)

    def assign_slot(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None:
        """Give a slot to a request before the plan with its first chunk is submitted; see `Device.assign_slot`."""
        self.device.assign_slot(slot, params, seed, tokens)

    def record(self, recorder: Recorder | None) -> None:
        """Record what happens from now on; with None, end that and complete what has been recorded."""
        self.device.record(recorder)
        self.recorder = recorder

    def submit(self, plan: Plan) -> Submitted[End]:
        """Dispatch a plan whose rows have no edits; returns before the device has run it."""
        progress = self._run_model(plan)
        return self._sample(progress, (), since=progress.began_ns)

    def dispatch_model(self, plan: Plan) -> Dispatching:
        """Dispatch a plan up to the last layer; `dispatch_sampling` must follow before the next plan."""
        progress = self._run_model(plan)
        self._note_dispatch(plan, progress.began_ns)
        return progress

    def dispatch_sampling(self, progress: Dispatching, edits: Sequence[RowEdits | None]) -> Submitted[End]:
        """Dispatch the rest of a plan; `edits` as in `Device.sample`."""
        return self._sample(progress, edits, since=time.perf_counter_ns())

    def _run_model(self, plan: Plan) -> Dispatching:
        began = time.perf_counter_ns()
        lengths = {cohort.id: cohort_lengths(cohort, self.buckets) for cohort in plan.cohorts}
        progress = Dispatching(plan=plan, lengths=lengths, began_ns=began)
        for landing in plan.landings:
            self.moves.land(landing)
        for eviction in plan.evictions:
            self._host_tables.replace(eviction.slot, eviction.host_pages, first=eviction.first)
        self._host_tables.apply(plan.new_host_pages)
        if plan.decode and not (plan.cohorts or plan.prefill or plan.evictions):
            self.device.run_decode(plan)
        else:
            self._run_stages(progress)
        for fetch in plan.fetches:
            self.moves.fetch(fetch)
        return progress

    def _sample(self, progress: Dispatching, edits: Sequence[RowEdits | None], *, since: int) -> Submitted[End]:
        plan, began = progress.plan, progress.began_ns
        end = self.device.sample(plan, [self._cohorts.pop(cohort.id).parked for cohort in plan.arriving], edits)
        self._note_dispatch(plan, since)
        compiled = self.device.take_new_shapes() or progress.new_shapes
        return Submitted(plan=plan, end=end, began_ns=began, wait_ns=progress.wait_ns, compiled=compiled)

    def _note_dispatch(self, plan: Plan, since: int) -> None:
        if self.recorder is not None:
            self.recorder.span("python", "dispatch", since, time.perf_counter_ns(), iteration=plan.number)

    def fetch(self, submitted: Submitted[End]) -> Sampled:
        """Wait for a plan to end; one row for each of its `sampling_requests`."""
        return self.device.fetch(submitted.end, len(submitted.plan.sampling_requests))

    def take_failures(self) -> Failures:
        """Return what has failed since the last call; no failure that bears on a plan fetched by now is missing."""
        failures, self._failures = {**self._failures, **self.moves.take_failed_stores()}, {}
        lost = None
        if self.worker is not None and self.worker.losses > self._losses:
            self._losses, lost = self.worker.losses, self.worker.lost_to
        return Failures(requests=failures, host_lost=lost)

    def arrived(self) -> list[int]:
        """Return the requests whose fetches have come to an end, well or not.

        Whom `take_failures` names after that must not land.
        """
        arrived = self.moves.arrived()
        self._failures |= {request_id: error for request_id, error in arrived.items() if error is not None}
        return list(arrived)

    def forget(self, request_id: int) -> None:
        """Drop what was fetched for a request that is gone."""
        self.moves.forget(request_id)

    def wait_for_fetch(self) -> None:
        """Wait until a fetch has come to an end; there must be one."""
        self.moves.wait_for_fetch()

    def _run_stages(self, progress: Dispatching) -> None:
        plan, device = progress.plan, self.device
        stages = plan.stages
        device.begin(plan)
        for cohort in plan.cohorts:
            if cohort.first == 0:
                self._depart(cohort)
        gathered, index, attended = -1, 0, False
        while index < len(stages):
            stage, boundary = stages[index], stages[index].boundary
            # Stages may begin behind boundary 0, where none but cohorts ride.
            while gathered < min(boundary, plan.num_layers - 1):
                gathered += 1
                for eviction in plan.evictions:
                    self.moves.evict(eviction, gathered)
            alone = 0 if attended or boundary == 0 else _device_alone(stages[index:])
            if alone:
                # Pages leave layer by layer, so that the host can store some while the device computes.
                count = 1 if plan.evictions else alone
                device.layers(boundary, count)
                index, boundary = index + count, boundary + count - 1
            else:
                index += 1
                self._pass(progress, stage, stages[index] if index < len(stages) else None)
            if stage.device and boundary < plan.num_layers:
                # Where the device rows go on alone, their attention and the boundary after it are one program.
                attended = not _device_alone(stages[index:])
                if attended:
                    device.attend(boundary)
        for layer in range(gathered + 1, plan.num_layers):
            for eviction in plan.evictions:
                self.moves.evict(eviction, layer)

    def _pass(self, progress: Dispatching, stage: Stage, follows: Stage | None) -> None:
        boundary, cohort = stage.boundary, stage.cohort
        if cohort is None:
            self.device.boundary(boundary, device=stage.device, cohort=None, attended=None)
            return
        riding = self._cohorts[cohort]
        attended = self._await(progress, riding, cohort, boundary) if boundary > 0 else None
        qkv = self.device.boundary(boundary, device=stage.device, cohort=riding.parked, attended=attended)
        if qkv is not None and not riding.failed:
            at_once = follows is not None and follows.cohort == cohort
            self._hand_over(progress, riding, cohort, boundary, qkv, wake=not at_once)

    def _depart(self, cohort: Cohort) -> None:
        slots = pack_cohort(cohort, self.buckets)[:, 0]
        self._cohorts[cohort.id] = _Riding(
            parked=self.device.board(cohort),
            request_ids=tuple(row.request_id for row in cohort.rows if row is not None),
            table=self._host_tables.rows[slots],
        )

    def _hand_over(
        self, progress: Dispatching, riding: _Riding[Parked], cohort: int, layer: int, qkv: FromDevice, *, wake: bool
    ) -> None:
        """Give a cohort's rows to the host."""
        assert self.worker is not None
        lengths = progress.lengths[cohort]

        def fetch() -> np.ndarray:
            packed = qkv()
            riding.idle_ns = self.device.idle_since()
            return packed

        riding.job = self.worker.attend(layer, fetch, riding.table, lengths, self.device.deliver, tag=cohort, wake=wake)
        progress.new_shapes |= len(lengths) not in self._host_rows
        self._host_rows.add(len(lengths))

    def _await(self, progress: Dispatching, riding: _Riding[Parked], cohort: int, boundary: int) -> Sent | None:
        """Return the host's attention for a cohort that boards; None if it has failed."""
        if riding.failed:
            return None
        job = riding.job
        assert self.worker is not None
        assert job is not None
        late = not job.ended
        begin, idle = time.perf_counter_ns(), self.device.idle_since() if late else None
        self.worker.join(job)
        if late:
            self._count_wait(progress, riding, begin, idle, layer=boundary - 1, cohort=cohort)
        if job.error is not None:
            riding.failed = True
            self._failures |= dict.fromkeys(riding.request_ids, job.error)
        return job.result

    def _count_wait(
        self, progress: Dispatching, riding: _Riding, begin: int, idle: int | None, *, layer: int, cohort: int
    ) -> None:
        """Count a wait that ends now, as far as the device had nothing to do; `idle` is what it said as it began.

        A device may know no more than whether it works at present. So it is asked when the wait begins, when the job
        has its input, and now: nothing is dispatched meanwhile, and it stays idle once it is.
        """
        end = time.perf_counter_ns()
        if idle is None and riding.idle_ns is not None and riding.idle_ns >= begin:
            idle = riding.idle_ns
        if idle is None:
            idle = self.device.idle_since()
        # Until the job had its input, it was the host that waited for the device.
        assert riding.job is not None
        begin = max(begin, riding.job.fetched_ns)
        idle = end if idle is None else min(max(idle, begin), end)
        progress.wait_ns += end - idle
        if self.recorder is None:
            return
        # With work still queued on the device it is Python alone that waits.
        for name, since, until in (("python waits", begin, idle), ("device waits", idle, end)):
            if until > since:
                self.recorder.span("waits", name, since, until, layer=layer, cohort=cohort)

    def _note(self, job: HostJob) -> None:
        """Count and record a host job that has ended; called in the thread that ran it, one at a time."""
        self.host.add(job)
        if self.recorder is not None and job.error is None:
            record_job(self.recorder, job)


def _device_alone(stages: Sequence[Stage]) -> int:
    """Return how many boundaries from here on none but device rows pass."""
    return sum(1 for _ in takewhile(lambda stage: stage.device and stage.cohort is None, stages))
