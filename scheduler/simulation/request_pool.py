"""The requests on one side of a simulation, held in sums: an iteration costs the same for ten or ten thousand of them.

All requests of a side advance alike, so one clock serves them: a request that joined when the clock stood at c has
produced clock - c tokens since. Sums over lengths and remaining tokens follow from sums taken at the joining.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ROUNDING = 1e-6
"""Tokens by which a clock that advances by fractions of them may be off."""


@dataclass(slots=True, kw_only=True, eq=False)
class SimRequest:
    """A request under way in a simulation.

    Attributes:
        id: in order of arrival; lower ids are served first.
        arrival_s: when it arrived.
        prompt, output: its tokens.
        done: output tokens produced before it joined the side it is on.
        computed: tokens whose KV exists while it is prefilled.
        first_token_s: when its first token came; negative before.
    """

    id: int
    arrival_s: float
    prompt: int
    output: int
    done: int = 0
    computed: int = 0
    first_token_s: float = -1.0

    @property
    def length(self) -> int:
        """Tokens of its context, the next one to be fed included, when it joined its side."""
        return self.prompt + self.done


class RequestPool:
    """The decoding requests on one side.

    Args:
        page_size: tokens in a page.
        window: tokens that each attends to at most; None for all.

    Attributes:
        clock: tokens that a request here from the start would have produced.
        rows: requests.
        held: pages of the tokens before everybody's next one.
        new_pages: by clock modulo the page size, how many requests need another page for their next token.
        old_pages: the same for requests whose window leaves a page behind with that token.
    """

    def __init__(self, page_size: int, window: int | None = None) -> None:
        self.page_size = page_size
        self.window = window
        self.clock = 0.0
        self.rows = 0
        self.held = 0
        self.new_pages = [0] * page_size
        self.old_pages = [0] * page_size
        self._members: dict[int, tuple[SimRequest, float]] = {}
        self._ends: list[tuple[float, int]] = []
        self._youngest: list[int] = []
        self._oldest: list[int] = []
        self._length = 0.0
        self._remaining = 0.0
        self._full: set[int] = set()
        self._filling: list[tuple[int, int]] = []

    @property
    def kv_tokens(self) -> float:
        """Tokens that all together attend to."""
        return self._length + self.growing * self.clock + len(self._full) * (self.window or 0)

    @property
    def growing(self) -> int:
        """Requests that attend to one token more with each."""
        return self.rows - len(self._full)

    @property
    def remaining(self) -> float:
        """Output tokens that are still to come."""
        return self._remaining - self.rows * self.clock

    @property
    def next_end(self) -> float:
        """Where the clock stands when the next request has produced all its tokens; infinity without requests."""
        while self._ends:
            end, request_id = self._ends[0]
            member = self._members.get(request_id)
            if member is not None and _end(*member) == end:
                return end
            heapq.heappop(self._ends)
        return float("inf")

    @property
    def growth(self) -> int:
        """Pages that the next token of everybody needs."""
        return self.new_pages[int(self.clock + ROUNDING) % self.page_size]

    def steps_within(self, free: int, steps: int, pace: float = 1.0) -> int:
        """Return after how many of the next `steps` iterations, each of `pace` tokens, free pages are too few for the
        next token."""
        clock = int(self.clock + ROUNDING)
        tokens = int(self.clock + ROUNDING + pace * steps) - clock + 1
        if self.rows * -(-tokens // self.page_size) <= free:
            return steps
        for produced in range(clock, clock + tokens):
            free -= self.new_pages[produced % self.page_size]
            if free < 0:
                return math.ceil((produced - self.clock) / pace - ROUNDING)
            free += self.old_pages[produced % self.page_size]
        return steps

    def steps_to_return(self, steps: int, pace: float = 1.0) -> int:
        """Return how many of the next `steps` iterations, each of `pace` tokens, pass until somebody's window leaves a
        page behind, or may soon."""
        clock = int(self.clock + ROUNDING)
        ends = [
            produced + 1
            for produced in range(clock, clock + self.page_size)
            if self.old_pages[produced % self.page_size]
        ]
        if self._filling:
            ends.append(self._filling[0][0])
        return min([steps, *(max(1, math.ceil((end - self.clock) / pace - ROUNDING)) for end in ends)])

    def advance(self, tokens: float) -> None:
        """Let everybody produce so many tokens."""
        first = int(self.clock + ROUNDING)
        self.clock += tokens
        produced = int(self.clock + ROUNDING) - first
        if self.window is not None:
            for token in range(first, first + produced):
                self._fill(token)
                self.held += self.new_pages[token % self.page_size] - self.old_pages[token % self.page_size]
            self._fill(first + produced)
            return
        first %= self.page_size
        if produced == 1:
            self.held += self.new_pages[first]
        elif produced:
            rounds, rest = divmod(produced, self.page_size)
            self.held += rounds * self.rows + sum(self.new_pages[first : first + rest])
            self.held += sum(self.new_pages[: max(0, first + rest - self.page_size)])

    def join(self, request: SimRequest) -> None:
        """Take a request in."""
        clock, length = self.clock, request.length
        self._members[request.id] = (request, clock)
        self.rows += 1
        self.held += self._pages(length)
        self._length += length - clock
        self._remaining += request.output - request.done + clock
        self.new_pages[self._phase(request, clock)] += 1
        heapq.heappush(self._ends, (_end(request, clock), request.id))
        heapq.heappush(self._youngest, -request.id)
        heapq.heappush(self._oldest, request.id)
        if self.window is not None:
            heapq.heappush(self._filling, (self._filled(request, clock), request.id))
            self._fill(int(clock + ROUNDING))

    def leave(self, request: SimRequest) -> None:
        """Let a request go; its `done` counts what it produced here, in whole tokens."""
        self.held -= self.pages(request)
        _, since = self._members.pop(request.id)
        self.rows -= 1
        if request.id in self._full:
            self._full.discard(request.id)
            self.old_pages[self._old_phase(request, since)] -= 1
        else:
            self._length -= request.length - since
        self._remaining -= request.output - request.done + since
        self.new_pages[self._phase(request, since)] -= 1
        request.done = min(request.output, request.done + int(self.clock - since + ROUNDING))

    def pages(self, request: SimRequest) -> int:
        """Return the pages that a request here holds: those of the tokens before the next one.

        Pages come when the clock passes whole numbers, also for those who joined between two.
        """
        produced = int(self.clock + ROUNDING) - int(self._members[request.id][1] + ROUNDING)
        return self._pages(request.length + produced)

    def current_length(self, request: SimRequest) -> int:
        """Return the tokens of a request's context, the next one to be fed included."""
        return request.length + int(self.clock - self._members[request.id][1] + ROUNDING)

    def youngest(self) -> SimRequest | None:
        """Return the request that arrived last."""
        while self._youngest and -self._youngest[0] not in self._members:
            heapq.heappop(self._youngest)
        return self._members[-self._youngest[0]][0] if self._youngest else None

    def oldest(self) -> SimRequest | None:
        """Return the request that arrived first."""
        while self._oldest and self._oldest[0] not in self._members:
            heapq.heappop(self._oldest)
        return self._members[self._oldest[0]][0] if self._oldest else None

    def by_age(self) -> Iterator[SimRequest]:
        """Yield the requests, the youngest first."""
        if (first := self.youngest()) is not None:
            yield first
            yield from self._others(first, sorted(self._members, reverse=True))

    def by_arrival(self) -> Iterator[SimRequest]:
        """Yield the requests, the oldest first; those that have been yielded may leave meanwhile."""
        if (first := self.oldest()) is not None:
            yield first
            yield from self._others(first, sorted(self._members))

    def lengths(self) -> tuple[list[tuple[int, int]], list[int]]:
        """Return the context of each request and the output tokens that it has still to produce, and their ids."""
        clock, ids = self.clock, sorted(self._members)
        members = [self._members[request_id] for request_id in ids]
        done = [int(clock - since + ROUNDING) for _, since in members]
        return [(r.length + n, r.output - r.done - n) for (r, _), n in zip(members, done, strict=True)], ids

    def ended(self) -> Iterator[SimRequest]:
        """Remove and yield the requests that have produced all their tokens."""
        while self.next_end <= self.clock + ROUNDING:
            request = self._members[heapq.heappop(self._ends)[1]][0]
            self.leave(request)
            request.done = request.output
            yield request

    def _others(self, first: SimRequest, ids: Iterable[int]) -> Iterator[SimRequest]:
        # Mostly nobody asks for more than the first, and sorting them all would be in vain.
        return (self._members[request_id][0] for request_id in ids if request_id != first.id)

    def _pages(self, length: int) -> int:
        given_back = 0 if self.window is None else max(0, length - self.window) // self.page_size
        return -(-(length - 1) // self.page_size) - given_back

    def _filled(self, request: SimRequest, since: float) -> int:
        """Return where the clock stands when a context, its next token included, fills its window."""
        assert self.window is not None
        return int(since + ROUNDING) + self.window - request.length

    def _old_phase(self, request: SimRequest, since: float) -> int:
        return (self._filled(request, since) - 1) % self.page_size

    def _fill(self, clock: int) -> None:
        """Note whose context fills its window by now."""
        while self._filling and self._filling[0][0] <= clock:
            filled, request_id = heapq.heappop(self._filling)
            member = self._members.get(request_id)
            # It may have left since, and come again.
            if member is None or request_id in self._full or self._filled(*member) != filled:
                continue
            request, since = member
            self._full.add(request_id)
            self._length -= request.length - since
            self.old_pages[self._old_phase(request, since)] += 1

    def _phase(self, request: SimRequest, since: float) -> int:
        """The next token needs a page when the tokens before it fill theirs."""
        return (int(since + ROUNDING) + 1 - request.length) % self.page_size


def _end(request: SimRequest, since: float) -> float:
    return since + request.output - request.done
