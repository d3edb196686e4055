"""What a host worker has done, in numbers and as spans of a trace."""

from __future__ import annotations

from dataclasses import dataclass

from ..host_offload import HostJob
from ..tracing.recorder import Recorder

SPANS = {"attend": "attention", "store": "evict", "load": "fetch"}
"""Names of the host's work in a trace."""


@dataclass(kw_only=True)
class HostCounters:
    """Times in nanoseconds; pages are counted in one layer each."""

    attend_ns: int = 0
    jobs: int = 0
    store_ns: int = 0
    stored_pages: int = 0
    load_ns: int = 0
    loaded_pages: int = 0

    @property
    def busy_ns(self) -> int:
        return self.attend_ns + self.store_ns + self.load_ns

    def add(self, job: HostJob) -> None:
        """Count a job that has ended."""
        spent = job.ended_ns - (job.fetched_ns or job.ended_ns)
        if job.kind == "attend":
            self.attend_ns += spent
            self.jobs += 1
        elif job.kind == "store":
            self.store_ns += spent
            self.stored_pages += job.rows
        else:
            self.load_ns += spent
            self.loaded_pages += job.rows


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
