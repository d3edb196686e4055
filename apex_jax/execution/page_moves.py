"""Requests' KV on its way between device and host, layer by layer, and what the host worker has done."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic

from ..host_offload import HostJob, HostWorker
from ..scheduler import Eviction, Fetch, Landing
from ..tracing.recorder import Recorder
from .batch import padded_pages
from .device import Device, End, Parked, Sent

SPANS = {"attend": "attention", "store": "evict", "load": "fetch"}
"""Names of the host's work in a trace."""


@dataclass(kw_only=True)
class HostCounters:
    """Nanoseconds of attention and of moved pages, and jobs that attended."""

    attend_ns: int = 0
    jobs: int = 0
    move_ns: int = 0

    @property
    def busy_ns(self) -> int:
        return self.attend_ns + self.move_ns

    def add(self, job: HostJob) -> None:
        """Count a job that has ended."""
        spent = job.ended_ns - (job.fetched_ns or job.ended_ns)
        if job.kind == "attend":
            self.attend_ns += spent
            self.jobs += 1
        else:
            self.move_ns += spent


def record_job(recorder: Recorder, job: HostJob) -> None:
    """Record the parts of a job that has ended well."""
    args = {"layer": job.layer, "rows": job.rows}
    if job.kind == "attend":
        args["cohort"] = job.tag
        # Until the device is at the boundary, and its queries, keys and values have come.
        recorder.span("waits", "host waits", job.begun_ns, job.fetched_ns, **args)
    recorder.span("host", SPANS[job.kind], job.fetched_ns, job.computed_ns, **args)
    if job.kind != "store":
        recorder.span("transfers", "to device", job.computed_ns, job.ended_ns, **args)


class PageMoves(Generic[Parked, Sent, End]):
    """Hands pages to a host worker and takes them from it.

    Args:
        device: pages leave it as they are at that moment, and land in it.
        worker: owns the host's pages; nothing moves without one.
    """

    def __init__(self, device: Device[Parked, Sent, End], worker: HostWorker | None) -> None:
        self._device = device
        self._worker = worker
        self.clear()

    def clear(self) -> None:
        """Forget all requests."""
        self._stores: deque[tuple[int, HostJob]] = deque()
        self._loads: dict[int, list[HostJob]] = {}

    @property
    def _host(self) -> HostWorker:
        assert self._worker is not None
        return self._worker

    @property
    def is_idle(self) -> bool:
        """Whether no pages are on their way."""
        return not (self._stores or self._loads)

    def evict(self, eviction: Eviction, layer: int) -> None:
        """Send a layer's pages of a request to the host."""
        tiles = self._device.gather(layer, eviction.device_pages)
        pages = padded_pages(eviction.host_pages, self._device.buckets, padding=-1)
        self._stores.append((eviction.request_id, self._host.store(layer, tiles, pages, tag=eviction.request_id)))

    def fetch(self, fetch: Fetch) -> None:
        """Begin to send all pages of a request to the device."""
        pages = padded_pages(fetch.host_pages, self._device.buckets, padding=-1)
        self._loads[fetch.request_id] = [
            self._host.load(layer, pages, self._device.deliver, tag=fetch.request_id)
            for layer in range(self._device.num_layers)
        ]

    def land(self, landing: Landing) -> None:
        """Write the pages of a request that has been fetched into the device's."""
        for layer, job in enumerate(self._loads.pop(landing.request_id)):
            self._device.scatter(layer, landing.device_pages, self._host.wait(job))

    def forget(self, request_id: int) -> None:
        """Drop what was fetched for a request that is gone."""
        self._loads.pop(request_id, None)

    def arrived(self) -> dict[int, Exception | None]:
        """Return the requests whose fetches have come to an end, with what went wrong if something did."""
        if self._worker is not None:
            self._worker.catch_up()
        return {
            request_id: next((job.error for job in jobs if job.error is not None), None)
            for request_id, jobs in self._loads.items()
            if all(job.ended for job in jobs)
        }

    def take_failed_stores(self) -> dict[int, Exception]:
        """Return the requests whose pages did not reach the host, as far as is known by now."""
        failed = {}
        while self._stores and self._stores[0][1].ended:
            request_id, job = self._stores.popleft()
            if job.error is not None:
                failed[request_id] = job.error
        return failed

    def wait_for_fetch(self) -> None:
        """Wait until a fetch has come to an end, well or not; there must be one."""
        for job in next(iter(self._loads.values())):
            self._host.join(job)
