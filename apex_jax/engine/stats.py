"""What an engine has done, summed up while it runs and as users see it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..execution.executor import HostCounters
from ..scheduler import Scheduler


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine has done since it was made.

    Attributes:
        iterations: plans run.
        prompt_tokens: prompt tokens computed, those of preempted requests again each time.
        output_tokens: tokens that belong to results.
        device_tokens, host_tokens: output tokens sampled after attention on the device and on the host; more than
            `output_tokens` by those computed for requests that turned out to have ended.
        preemptions: times a request lost its pages and was computed again.
        evictions, landings: times a request's KV moved to the host, and back.
        busy_seconds: from submitting plans to their results; idle times between requests and iterations that compiled
            programs left out.
        device_utilisation: share of `busy_seconds` that is not in `wait_seconds`; at most that much of it was work, for
            the device is also idle where Python comes late, and waits count as far as they are known.
        host_utilisation: share of `busy_seconds` in which the host attended or moved pages.
        wait_seconds: time in which the device had nothing to do until a result of the host came. Exact on an emulated
            device. JAX tells whether a device works, but not since when it does not: there a wait counts from the first
            look that found nothing left to do, as Python began to wait or as the host's job had its input, and the true
            time is at least this. While a trace is recorded it counts from when the device was seen to end.
        host_seconds, move_seconds: the host's time for attention, and for pages that moved.
        running, waiting, on_host: requests now; `on_host` of the running ones have their KV there.
        free_pages, num_pages: pages of the device KV cache.
        free_host_pages, num_host_pages: pages of the host KV cache.
    """

    iterations: int
    prompt_tokens: int
    output_tokens: int
    device_tokens: int
    host_tokens: int
    preemptions: int
    evictions: int
    landings: int
    busy_seconds: float
    device_utilisation: float | None
    host_utilisation: float | None
    wait_seconds: float
    host_seconds: float
    move_seconds: float
    running: int
    waiting: int
    on_host: int
    free_pages: int
    num_pages: int
    free_host_pages: int
    num_host_pages: int


@dataclass(kw_only=True)
class Counters:
    """Sums over the life of an engine; times in nanoseconds."""

    iterations: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    device_tokens: int = 0
    host_tokens: int = 0
    preemptions: int = 0
    evictions: int = 0
    landings: int = 0
    busy_ns: int = 0
    wait_ns: int = 0
    host_busy_ns: int = 0

    def plus_moves(self, scheduler: Scheduler) -> Counters:
        """Return these with the moves that a scheduler has counted."""
        return replace(
            self,
            preemptions=self.preemptions + scheduler.preemptions,
            evictions=self.evictions + scheduler.evictions,
            landings=self.landings + scheduler.landings,
        )


def engine_stats(totals: Counters, scheduler: Scheduler, host: HostCounters) -> EngineStats:
    """Return the statistics of an engine with such totals, scheduler and host."""
    busy, host_pages = totals.busy_ns, scheduler.host_pages
    return EngineStats(
        iterations=totals.iterations,
        prompt_tokens=totals.prompt_tokens,
        output_tokens=totals.output_tokens,
        device_tokens=totals.device_tokens,
        host_tokens=totals.host_tokens,
        preemptions=totals.preemptions,
        evictions=totals.evictions,
        landings=totals.landings,
        busy_seconds=busy / 1e9,
        device_utilisation=1 - min(totals.wait_ns, busy) / busy if busy else None,
        host_utilisation=min(1.0, totals.host_busy_ns / busy) if busy else None,
        wait_seconds=totals.wait_ns / 1e9,
        host_seconds=host.attend_ns / 1e9,
        move_seconds=host.move_ns / 1e9,
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        on_host=scheduler.num_on_host,
        free_pages=scheduler.pages.num_free,
        num_pages=scheduler.pages.num_pages,
        free_host_pages=host_pages.num_free,
        num_host_pages=host_pages.num_pages,
    )
