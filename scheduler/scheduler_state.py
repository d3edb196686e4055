"""What a scheduler tells its policy: its requests and free memory in counts, and the lengths of all requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .capacity import Capacity
from .page_allocator import PageAllocator
from .request import Request
from .waiting_queue import WaitingQueue

Lengths = Sequence[tuple[int, int]]
"""(tokens of the context, output tokens still to come at most) of requests, in order of arrival."""


class Roster(NamedTuple):
    """The lengths of all requests.

    Attributes:
        device: of those on the device, those included whose prompts are being computed.
        host: of those on the host.
        waiting: of those without pages.
        arrivals: of the requests in that order, numbers that increase with arrival; empty where they came so.
    """

    device: Lengths = ()
    host: Lengths = ()
    waiting: Lengths = ()
    arrivals: Sequence[int] = ()

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.device) + len(self.host) + len(self.waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The requests that exist and the memory that is free, in counts.

    Attributes:
        num_layers: L.
        device_rows, device_kv_tokens: decoding device requests and the tokens that they attend to together.
        host_rows, host_kv_tokens: the same for host requests, those under way in cohorts included.
        prefill_tokens: prompt tokens that the next iteration will compute.
        prefill_context: tokens in front of those, which they attend to.
        waiting: requests without pages.
        waiting_tokens: their prompts together.
        waiting_first: tokens of the one that waits first, or as many as its pages will hold at once.
        waiting_output: output tokens that they may still produce, at most.
        remaining_tokens: output tokens that the running requests may still produce, at most.
        host_remaining_tokens: the same for host requests alone.
        free_device_tokens, free_host_tokens: tokens that the free pages of either side hold.
        mid_token_rows: host rows that are between two layers.
        oldest_host_wait: iterations since the host request that waits longest last finished a token.
        undecided: iterations without prompts since the last decision; a simulator takes many in one step.
        roster: gives the lengths of all requests, for a policy that looks ahead; None where they are not known.
    """

    num_layers: int
    device_rows: int = 0
    device_kv_tokens: int = 0
    host_rows: int = 0
    host_kv_tokens: int = 0
    prefill_tokens: int = 0
    prefill_context: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    waiting_first: int = 0
    waiting_output: int = 0
    remaining_tokens: int = 0
    host_remaining_tokens: int = 0
    free_device_tokens: int = 0
    free_host_tokens: int = 0
    mid_token_rows: int = 0
    oldest_host_wait: int = 0
    undecided: int = 0
    roster: Callable[[], Roster] | None = field(default=None, compare=False, repr=False)


def situation(
    running: Sequence[Request],
    waiting: WaitingQueue,
    *,
    num_layers: int,
    plan: int,
    capacity: Capacity,
    pages: PageAllocator,
    host_pages: PageAllocator,
) -> Situation:
    """Return the requests that exist and the memory that is free, in counts.

    Args:
        running, waiting: the requests, in order of arrival.
        num_layers: L.
        plan: number of the next plan.
        capacity: prompt tokens of an iteration, and the window of attention.
        pages, host_pages: of either side.
    """
    device = [r for r in running if r.side == "device" and r.wants_token]
    host = [r for r in running if r.side == "host" and not r.fetching]
    prefilling = [r for r in running if r.is_prefilling]
    owed = sum(r.prefill_target - r.computed for r in prefilling) + waiting.tokens
    first = waiting.first
    host_remaining = _remaining(host)
    others_remaining = _remaining(r for r in running if r.side == "device" or r.fetching)
    return Situation(
        num_layers=num_layers,
        device_rows=len(device),
        device_kv_tokens=_attended(device, capacity.sliding_window),
        host_rows=len(host),
        host_kv_tokens=_attended(host, capacity.sliding_window),
        prefill_tokens=min(capacity.max_prefill_pages * pages.page_size, owed),
        prefill_context=prefilling[0].computed if prefilling else 0,
        waiting=len(waiting),
        waiting_tokens=waiting.tokens,
        waiting_first=capacity.at_once(first.length) if first else 0,
        waiting_output=waiting.output,
        remaining_tokens=host_remaining + others_remaining,
        host_remaining_tokens=host_remaining,
        free_device_tokens=pages.num_free * pages.page_size,
        free_host_tokens=host_pages.num_free * host_pages.page_size,
        mid_token_rows=sum(r.cohort is not None for r in host),
        oldest_host_wait=max((plan - r.last_turn for r in host), default=0),
        roster=lambda: roster(running, waiting),
    )


def roster(running: Iterable[Request], waiting: Iterable[Request]) -> Roster:
    """Return the lengths of all requests; those on the way to the device count as there."""
    device, host, device_ids, host_ids = [], [], [], []
    for request in running:
        steps = len(request.output) + request.in_flight
        if steps < request.max_tokens:
            there = request.side == "host" and not request.fetching
            (host if there else device).append((len(request.prompt) + steps, request.max_tokens - steps))
            (host_ids if there else device_ids).append(request.id)
    coming = [(r.length, r.max_tokens - r.steps) for r in waiting]
    return Roster(device, host, coming, [*device_ids, *host_ids, *(r.id for r in waiting)])


def _attended(requests: Iterable[Request], window: int | None) -> int:
    """Return the tokens that all attend to."""
    # Hundreds of requests before every plan: their properties would take longer than all the rest.
    lengths = (len(request.prompt) + len(request.output) + request.in_flight for request in requests)
    return sum(lengths) if window is None else sum(min(length, window) for length in lengths)


def _remaining(requests: Iterable[Request]) -> int:
    """Return the tokens that may still come."""
    return sum(request.max_tokens - len(request.output) - request.in_flight for request in requests)
