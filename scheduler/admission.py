"""The rules of scheduling, over counts of pages and requests: who is admitted, who gives way, who moves where.

First come, first served: prompts are computed on the device, in the order of arrival, and nobody overtakes the one who
waits first. Where its pages run out the youngest go to the host if they may and it has room, otherwise newcomers wait,
and a request that cannot grow takes the pages of the youngest, which is computed again later. Host requests come back,
the oldest first, when nobody waits. On either side a page is left free for each request, to grow into.

Nothing here knows what a request is, or which pages it holds: the engine's scheduler, the simulator's and the planner's
forecast ask, and keep their own books.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

Request = TypeVar("Request")
Verb = TypeVar("Verb")


def fits(need: int, free: int, rows: int, most: float) -> bool:
    """Whether a newcomer of so many pages is admitted beside `rows` requests: one more page is left for each of them.

    Without those, admitting one would soon drive out another.
    """
    return rows < most and free - need >= rows


class Tier(NamedTuple):
    """One side: the device or the host.

    Attributes:
        free: pages that nobody holds.
        rows: requests that are there.
        most: requests that may be.
    """

    free: int
    rows: int
    most: float

    @property
    def is_full(self) -> bool:
        """Whether no more requests may come, whatever their size."""
        return self.rows >= self.most

    def holds(self, need: int) -> bool:
        """Whether so many pages are free for one more request, whatever is left then."""
        return not self.is_full and need <= self.free

    def admits(self, need: int) -> bool:
        """Whether a newcomer `fits`."""
        return fits(need, *self)

    def takes_over(self, need: int) -> bool:
        """Whether a request that comes from the other side finds its pages, and one is left for each, itself included:
        without it, it might soon go back."""
        return fits(need + 1, *self)


def in_order(
    *, land: Verb, make_room: Verb, grow: Verb, prefill: Verb, fetch_back: Verb, ride: Verb
) -> tuple[Verb, ...]:
    """Return what makes up an iteration, in the order that gives those who are there what newcomers would take.

    Args:
        land: take in those whose KV has come to the device.
        make_room: send device requests to the host for those who wait.
        grow: give decoding device requests the pages of their next tokens.
        prefill: compute prompts and admit newcomers.
        fetch_back: begin to move host requests to the device.
        ride: give the other host requests the pages of their next tokens. After the fetches, or requests that begin a
            token with every iteration would never be between two of them.
    """
    return land, make_room, grow, prefill, fetch_back, ride


def make_room(
    newcomers: Iterable[int],
    young: Iterator[Request],
    need: Callable[[Request], int],
    budget: int,
    device: Tier,
    host: Tier,
) -> tuple[int, list[Request]]:
    """Return how many newcomers an iteration can admit and begin, and which of the youngest must leave for them.

    Nobody leaves for a newcomer who is not admitted even if all leave that the host takes over.

    Args:
        newcomers: pages of those who wait, in order of arrival.
        young: device requests that can leave, the youngest first.
        need: pages of one of those, its next token's included.
        budget: pages of prompts that the iteration computes beside those under way.
        device, host: the two sides.
    """
    free, rows, most = device
    host_free, host_rows, host_most = host
    admitted, leaving, decided = 0, [], 0
    for pages in newcomers:
        if budget <= 0:
            break
        while not fits(pages, free, rows, most):
            request = next(young, None) if host_rows < host_most else None
            if request is None or not fits((held := need(request)) + 1, host_free, host_rows, host_most):
                return admitted, leaving[:decided]
            leaving.append(request)
            free, rows = free + held, rows - 1
            host_free, host_rows = host_free - held, host_rows + 1
        admitted, decided = admitted + 1, len(leaving)
        free, rows, budget = free - pages, rows + 1, budget - pages
    return admitted, leaving


def gives_way(candidates: Iterable[Request], need: Callable[[Request], int], host: Tier) -> Request | None:
    """Return who goes to the host so that another can grow: the youngest that it takes over.

    Args:
        candidates: decoding device requests, the youngest first, down to the one that cannot grow.
        need: pages of a request, its next token's included.
        host: the host.

    Returns:
        None if it takes over none of them: then the youngest on the device, decoding or not, is preempted.
    """
    if host.is_full:
        return None
    return next((each for each in candidates if host.takes_over(need(each))), None)


def prefill(
    budget: int,
    under_way: Iterable[Request],
    admit: Callable[[], Request | None],
    compute: Callable[[Request, int], int],
) -> None:
    """Spend an iteration's pages of prompts: on those under way in order of arrival, then on newcomers.

    Args:
        budget: pages.
        under_way: requests whose prompts have begun.
        admit: takes the first in who waits, and returns it if there is room.
        compute: computes a request's prompt as far as so many pages hold it, and returns how many that were.
    """
    for request in under_way:
        if budget <= 0:
            return
        budget -= compute(request, budget)
    while budget > 0 and (request := admit()) is not None:
        budget -= compute(request, budget)
