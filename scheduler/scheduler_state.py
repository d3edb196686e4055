"""What a scheduler tells its policy: its requests and free memory in counts, and the lengths of all requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .page_allocator import PageTable
from .policy import Situation
from .request import Request
from .roster import Roster


def situation(
    running: Sequence[Request],
    waiting: Sequence[Request],
    *,
    num_layers: int,
    plan: int,
    prefill_pages: int,
    pages: PageTable,
    host_pages: PageTable,
) -> Situation:
    """Return the requests that exist and the memory that is free, in counts.

    Args:
        running, waiting: the requests, in order of arrival.
        num_layers: L.
        plan: number of the next plan.
        prefill_pages: pages of prompts that an iteration computes.
        pages, host_pages: of either side.
    """
    device = [r for r in running if r.side == "device" and r.wants_token]
    host = [r for r in running if r.side == "host" and not r.fetching]
    prefilling = [r for r in running if r.is_prefilling]
    waiting_tokens = sum(r.length for r in waiting)
    owed = sum(r.prefill_target - r.computed for r in prefilling) + waiting_tokens
    host_tokens, host_remaining = _tokens(host)
    others_remaining = _tokens(r for r in running if r.side == "device" or r.fetching)[1]
    return Situation(
        num_layers=num_layers,
        device_rows=len(device),
        device_kv_tokens=sum(r.length for r in device),
        host_rows=len(host),
        host_kv_tokens=host_tokens,
        prefill_tokens=min(prefill_pages * pages.page_size, owed),
        prefill_context=prefilling[0].computed if prefilling else 0,
        waiting=len(waiting),
        waiting_tokens=waiting_tokens,
        waiting_first=waiting[0].length if waiting else 0,
        waiting_output=sum(r.max_tokens - r.steps for r in waiting),
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


def _tokens(requests: Iterable[Request]) -> tuple[int, int]:
    """Return the tokens of all contexts, and those that may still come."""
    contexts = remaining = 0
    # Hundreds of requests before every plan: their properties would take longer than all the rest.
    for request in requests:
        steps = len(request.output) + request.in_flight
        contexts += len(request.prompt) + steps
        remaining += request.max_tokens - steps
    return contexts, remaining
