"""The requests that wait for pages, with sums over them: a plan costs the same for ten or a hundred thousand."""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Iterator

from .request import Request


class WaitingQueue:
    """Requests in order of arrival. What they need does not change while they wait.

    Attributes:
        tokens: of their contexts together.
        output: tokens that they may still produce, at most.
    """

    def __init__(self) -> None:
        self.tokens = self.output = 0
        self._members: dict[int, tuple[Request, int, int]] = {}
        # Ids in order of arrival: newcomers, and those that came before one of these, as after a preemption. Who has
        # been removed is passed over.
        self._newcomers: deque[int] = deque()
        self._earlier: list[int] = []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Request]:
        ids = heapq.merge(self._earlier, self._newcomers)
        return (self._members[request_id][0] for request_id in ids if request_id in self._members)

    @property
    def first(self) -> Request | None:
        """The one that arrived first."""
        return next(iter(self), None) if self._members else None

    def add(self, request: Request) -> None:
        """Let a request wait, in its place."""
        if self._newcomers and request.id < self._newcomers[-1]:
            insort(self._earlier, request.id)
        else:
            self._newcomers.append(request.id)
        tokens, output = request.length, request.max_tokens - request.steps
        self._members[request.id] = request, tokens, output
        self.tokens += tokens
        self.output += output

    def remove(self, request: Request) -> None:
        """Let a request wait no longer."""
        _, tokens, output = self._members.pop(request.id)
        self.tokens -= tokens
        self.output -= output
        while self._newcomers and self._newcomers[0] not in self._members:
            self._newcomers.popleft()
        while self._earlier and self._earlier[0] not in self._members:
            del self._earlier[0]
