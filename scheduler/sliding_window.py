"""Pages in front of the window of attention, which nobody reads any more, given back at the end of a plan."""

from __future__ import annotations

from collections.abc import Iterable

from .capacity import Capacity
from .page_allocator import PageAllocator
from .plan_builder import Draft
from .request import Request


def give_back(
    running: Iterable[Request], capacity: Capacity, pages: PageAllocator, host_pages: PageAllocator, draft: Draft
) -> None:
    """Free what the next tokens of requests that are between two tokens do not reach.

    What is freed belongs to others from the next plan on: whoever reads it in this one has done so by then. A prompt
    under way takes as many for its next tokens, so that it has all that it needs from its admission on.
    """
    if capacity.sliding_window is None:
        return
    for request in running:
        if request.cohort is not None or request.fetching:
            continue
        gone = capacity.given_back(request.computed) - request.given_back
        on_host = request.side == "host"
        held, allocator = (request.host_pages, host_pages) if on_host else (request.pages, pages)
        if gone > 0:
            allocator.free(held[:gone])
            del held[:gone]
            request.given_back += gone
        if request.is_prefilling:
            missing = capacity.prompt_pages(request.prefill_target, request.computed) - len(held)
            if missing > 0:
                taken = allocator.allocate(missing, after=held[-1] if held else None)
                draft.add_pages(request, taken)
                held += taken
