"""Runs plans: tells the device which boundary comes next, and the host worker what to attend to meanwhile.

The executor decides nothing. It walks the stages of a plan in order; the device's queue keeps that order, and the host
worker's queue keeps the order in which jobs were handed over, so that no further synchronisation is needed: the
executor waits in one place only, where a cohort boards and the host's result is not there yet.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import numpy as np

from ..host_offload import HostJob, HostWorker
from ..sampling_params import SamplingParams
from ..scheduler import Cohort, Eviction, Fetch, Landing, Plan, Stage
from ..tracing.recorder import Recorder
from .batch import PageTables, cohort_lengths, pack_cohort, padded_pages
from .buckets import Buckets
from .sampler import Sampled


class Device(Protocol):
    """What an executor asks of a device; `JaxDevice` documents each method."""

    buckets: Buckets
    num_layers: int
    tables: PageTables

    def reset(self) -> None: ...
    def assign_slot(self, slot: int, params: SamplingParams, seed: np.ndarray, tokens: Sequence[int]) -> None: ...
    def run_decode(self, plan: Plan) -> None: ...
    def begin(self, plan: Plan) -> None: ...
    def board(self, cohort: Cohort) -> None: ...
    def boundary(
        self, boundary: int, *, device: bool, cohort: int | None, attended: Any
    ) -> Callable[[], np.ndarray] | None: ...
    def attend(self, layer: int) -> None: ...
    def layers(self, boundary: int, count: int) -> None: ...
    def sample(self, plan: Plan) -> Any: ...
    def head(self, rows: int) -> Any: ...
    def fetch(self, end: Any, count: int) -> Sampled: ...
    def gather(self, layer: int, pages: Sequence[int]) -> Callable[[], np.ndarray]: ...
    def scatter(self, layer: int, pages: Sequence[int], tiles: Any) -> None: ...
    def deliver(self, array: np.ndarray) -> Any: ...
    def no_attention(self, rows: int) -> Any: ...
    def forget_cohorts(self) -> None: ...
    def set_weights(self, weights: Any) -> None: ...
    def warm_up(self) -> None: ...
    def record(self, recorder: Recorder | None) -> None: ...
    def take_new_shapes(self) -> bool: ...
    def idle_since(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A plan under way.

    Attributes:
        plan: what was submitted.
        end: what `Device.sample` returned.
        began_ns: when its dispatch began (`time.perf_counter_ns`).
        wait_ns: how long the executor waited in it for the host while the device is known to have had nothing to do.
        compiled: a program was compiled for it, so that its time says nothing.
    """

    plan: Plan
    end: Any
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
class HostCounters:
    """What a host worker has done: times in nanoseconds, pages counted in one layer each."""

    attend_ns: int = 0
    jobs: int = 0
    store_ns: int = 0
    stored_pages: int = 0
    load_ns: int = 0
    loaded_pages: int = 0

    @property
    def busy_ns(self) -> int:
        return self.attend_ns + self.store_ns + self.load_ns


@dataclass(kw_only=True)
class _Riding:
    """A cohort whose token is under way.

    Attributes:
        idle_ns: since when the device had nothing to do as the job got its input; None if it had.
    """

    request_ids: tuple[int, ...]
    table: np.ndarray
    job: HostJob | None = None
    idle_ns: int | None = None
    failed: bool = False


@dataclass(kw_only=True)
class _Progress:
    """A plan being dispatched."""

    plan: Plan
    lengths: dict[int, np.ndarray]
    wait_ns: int = 0
    new_shapes: bool = False


class Executor:
    """Runs plans on a device and, if there is a host tier, a host worker.

    Args:
        device: runs the linear layers and the device rows' attention.
        worker: attends for host rows; None without a host tier.
    """

    def __init__(self, device: Device, worker: HostWorker | None = None) -> None:
        held, promised = worker.num_pages if worker is not None else 0, device.buckets.capacity.host_pages
        if held != promised:
            raise ValueError(f"the host worker has {held} pages; the capacity says {promised}")
        self.device = device
        self.worker = worker
        self.recorder: Recorder | None = None
        self.host = HostCounters()
        self._host_rows: set[int] = set()
        if worker is not None:
            worker.observers.append(self._note)
        self._start_empty()

    def _start_empty(self) -> None:
        self._host_tables = PageTables(self.device.buckets)
        self._cohorts: dict[int, _Riding] = {}
        self._stores: deque[tuple[int, HostJob]] = deque()
        self._loads: dict[int, list[HostJob]] = {}
        self._failures: dict[int, BaseException] = {}
        self._losses = self.worker.losses if self.worker else 0

    @property
    def buckets(self) -> Buckets:
        return self.device.buckets

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
        self.device.forget_cohorts()

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

    def submit(self, plan: Plan) -> Submitted:
        """Dispatch a plan; returns before the device has run it."""
        began = time.perf_counter_ns()
        lengths = {cohort.id: cohort_lengths(cohort, self.buckets) for cohort in plan.cohorts}
        progress = _Progress(plan=plan, lengths=lengths)
        for landing in plan.landings:
            self._land(landing)
        self.device.tables.apply(plan.new_pages)
        for eviction in plan.evictions:
            self._host_tables.replace(eviction.slot, eviction.host_pages)
        self._host_tables.apply(plan.new_host_pages)
        if plan.decode and not (plan.cohorts or plan.prefill or plan.evictions):
            self.device.run_decode(plan)
        else:
            self._run_stages(progress)
        for fetch in plan.fetches:
            self._fetch(fetch)
        end = self.device.sample(plan)
        for cohort in plan.arriving:
            del self._cohorts[cohort.id]
        if self.recorder is not None:
            self.recorder.span("python", "dispatch", began, time.perf_counter_ns(), iteration=plan.number)
        compiled = self.device.take_new_shapes() or progress.new_shapes
        return Submitted(plan=plan, end=end, began_ns=began, wait_ns=progress.wait_ns, compiled=compiled)

    def fetch(self, submitted: Submitted) -> Sampled:
        """Wait for a plan to end; one row for each of its `sampling_requests`."""
        return self.device.fetch(submitted.end, len(submitted.plan.sampling_requests))

    def take_failures(self) -> Failures:
        """Return what has failed since the last call; no failure that bears on a plan fetched by now is missing."""
        while self._stores and self._stores[0][1].ended:
            request_id, job = self._stores.popleft()
            if job.error is not None:
                self._failures[request_id] = job.error
        failures, self._failures = self._failures, {}
        lost = None
        if self.worker is not None and self.worker.losses > self._losses:
            self._losses, lost = self.worker.losses, self.worker.lost_to
        return Failures(requests=failures, host_lost=lost)

    def arrived(self) -> list[int]:
        """Return the requests whose fetches have come to an end, well or not.

        Whom `take_failures` names after that must not land.
        """
        if self.worker is not None:
            self.worker.catch_up()
        ended = [request_id for request_id, jobs in self._loads.items() if all(job.ended for job in jobs)]
        for request_id in ended:
            error = next((job.error for job in self._loads[request_id] if job.error is not None), None)
            if error is not None:
                self._failures[request_id] = error
        return ended

    def forget(self, request_id: int) -> None:
        """Drop what was fetched for a request that is gone."""
        self._loads.pop(request_id, None)

    def wait_for_fetch(self) -> None:
        """Wait until a fetch has come to an end; there must be one."""
        jobs = next(iter(self._loads.values()))
        assert self.worker is not None
        for job in jobs:
            self._result_or_none(job)

    def _run_stages(self, progress: _Progress) -> None:
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
                    self._evict(eviction, gathered)
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
                self._evict(eviction, layer)

    def _pass(self, progress: _Progress, stage: Stage, follows: Stage | None) -> None:
        boundary, attended = stage.boundary, None
        if stage.cohort is not None and boundary > 0:
            attended = self._await(progress, self._cohorts[stage.cohort], stage.cohort, boundary)
        qkv = self.device.boundary(boundary, device=stage.device, cohort=stage.cohort, attended=attended)
        if stage.cohort is not None and qkv is not None:
            at_once = follows is not None and follows.cohort == stage.cohort
            progress.new_shapes |= self._hand_over(
                stage.cohort, progress.lengths[stage.cohort], boundary, qkv, wake=not at_once
            )

    def _depart(self, cohort: Cohort) -> None:
        packed = pack_cohort(cohort, self.buckets)
        self._cohorts[cohort.id] = _Riding(
            request_ids=tuple(row.request_id for row in cohort.rows if row is not None),
            table=self._host_tables.rows[packed[:, 0]],
        )
        self.device.board(cohort)

    def _hand_over(
        self, cohort: int, lengths: np.ndarray, layer: int, qkv: Callable[[], np.ndarray], *, wake: bool
    ) -> bool:
        """Give a cohort's rows to the host; returns whether so many rows are new to it."""
        riding = self._cohorts[cohort]
        if riding.failed:
            return False
        assert self.worker is not None

        def fetch() -> np.ndarray:
            packed = qkv()
            riding.idle_ns = self.device.idle_since()
            return packed

        riding.job = self.worker.attend(layer, fetch, riding.table, lengths, self.device.deliver, tag=cohort, wake=wake)
        known = len(lengths) in self._host_rows
        self._host_rows.add(len(lengths))
        return not known

    def _await(self, progress: _Progress, riding: _Riding, cohort: int, boundary: int) -> Any:
        """Return the host's attention for a cohort that boards; zeros if it has failed."""
        if not riding.failed:
            assert riding.job is not None
            late = not riding.job.ended
            begin, idle = time.perf_counter_ns(), self.device.idle_since() if late else None
            result = self._result_or_none(riding.job)
            if late:
                self._count_wait(progress, riding, begin, idle, layer=boundary - 1, cohort=cohort)
            if result is not None:
                return result
            riding.failed = True
            assert riding.job.error is not None
            self._failures |= dict.fromkeys(riding.request_ids, riding.job.error)
        return self.device.no_attention(len(riding.table))

    def _count_wait(
        self, progress: _Progress, riding: _Riding, begin: int, idle: int | None, *, layer: int, cohort: int
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

    def _result_or_none(self, job: HostJob) -> Any:
        assert self.worker is not None
        try:
            return self.worker.wait(job)
        except Exception:
            if job.error is None:
                raise
            return None

    def _evict(self, eviction: Eviction, layer: int) -> None:
        assert self.worker is not None
        tiles = self.device.gather(layer, eviction.device_pages)
        pages = padded_pages(eviction.host_pages, self.buckets, padding=-1)
        self._stores.append((eviction.request_id, self.worker.store(layer, tiles, pages, tag=eviction.request_id)))

    def _fetch(self, fetch: Fetch) -> None:
        assert self.worker is not None
        pages = padded_pages(fetch.host_pages, self.buckets, padding=-1)
        self._loads[fetch.request_id] = [
            self.worker.load(layer, pages, self.device.deliver, tag=fetch.request_id)
            for layer in range(self.device.num_layers)
        ]

    def _land(self, landing: Landing) -> None:
        self.device.tables.replace(landing.slot, landing.device_pages)
        for layer, job in enumerate(self._loads.pop(landing.request_id)):
            self.device.scatter(layer, landing.device_pages, self._result_or_none(job))

    def _note(self, job: HostJob) -> None:
        """Count a host job that has ended; called in the thread that ran it, one at a time."""
        spent = job.ended_ns - (job.fetched_ns or job.ended_ns)
        if job.kind == "attend":
            self.host.attend_ns += spent
            self.host.jobs += 1
        elif job.kind == "store":
            self.host.store_ns += spent
            self.host.stored_pages += job.rows
        else:
            self.host.load_ns += spent
            self.host.loaded_pages += job.rows
        if self.recorder is None or job.error is not None:
            return
        recorder, args = self.recorder, {"layer": job.layer, "rows": job.rows}
        if job.kind == "attend":
            args["cohort"] = job.tag
            # Until the device is at the boundary, and its queries, keys and values have come.
            recorder.span("waits", "host waits", job.begun_ns, job.fetched_ns, **args)
        names = {"attend": "attention", "store": "evict", "load": "fetch"}
        recorder.span("host", names[job.kind], job.fetched_ns, job.computed_ns, **args)
        if job.kind != "store":
            recorder.span("transfers", "to device", job.computed_ns, job.ended_ns, **args)


def _device_alone(stages: Sequence[Stage]) -> int:
    """Return how many boundaries from here on none but device rows pass."""
    return sum(1 for _ in takewhile(lambda stage: stage.device and stage.cohort is None, stages))
