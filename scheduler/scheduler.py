"""First-come-first-served continuous batching over one pool of device pages.

Three verbs: `add` a request, `schedule` the next plan, `update` with the tokens of a plan that has run. Plans are made
one iteration ahead: when a plan is scheduled the tokens of the one before it have usually not arrived, so the scheduler
counts tokens in flight and never needs their values, except to prefill a preempted request again.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from .page_table import PageTable
from .plan import DecodeRow, NewPages, Plan, PrefillChunk
from .request import Request


class Scheduler:
    """Decides which requests run in the next iteration.

    Args:
        pages: the device pages.
        max_num_seqs: requests that may hold a slot at once.
        max_prefill_tokens: prompt tokens computed in one iteration; rounded down to whole pages, at least one.
    """

    def __init__(self, pages: PageTable, *, max_num_seqs: int, max_prefill_tokens: int) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs is {max_num_seqs}; at least 1 is needed")
        if max_prefill_tokens < 1:
            raise ValueError(f"max_prefill_tokens is {max_prefill_tokens}; at least 1 is needed")
        self.pages = pages
        self.max_num_seqs = max_num_seqs
        self.max_prefill_pages = max(1, max_prefill_tokens // pages.page_size)
        self.preemptions = 0
        self._plans = 0
        self._requests: dict[int, Request] = {}
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    def check(self, request: Request) -> None:
        """Refuse a request that `add` could not take.

        Raises:
            ValueError: its id is taken, or the pool can never hold its prompt and output.
        """
        if request.id in self._requests:
            raise ValueError(f"request id {request.id} is already in use")
        capacity = self.pages.num_pages * self.pages.page_size
        if len(request.prompt) + request.max_tokens > capacity + 1:
            raise ValueError(
                f"request {request.id}: prompt of {len(request.prompt)} and max_tokens={request.max_tokens} exceed "
                f"the device KV cache of {capacity} tokens"
            )

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: see `check`; nothing has changed then.
        """
        self.check(request)
        self._requests[request.id] = request
        insort(self._waiting, request, key=_arrival)

    def finish(self, request_id: int) -> None:
        """Remove a request in whatever state it is and free what it holds; tokens still in flight will be ignored."""
        request = self._requests.pop(request_id)
        if request.slot is None:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
            self._release(request)

    def schedule(self) -> Plan | None:
        """Make the next plan, or return None if there is nothing to do until more tokens arrive."""
        new_pages: list[NewPages] = []
        decode = self._schedule_decode(new_pages)
        prefill = self._schedule_prefill(new_pages)
        if not decode and not prefill:
            return None
        plan = Plan(
            number=self._plans,
            prefill=tuple(prefill),
            decode=tuple(decode),
            new_pages=tuple(new_pages),
        )
        self._plans += 1
        return plan

    def update(self, plan: Plan, tokens: Sequence[int]) -> list[tuple[Request, int]]:
        """Record the tokens a plan sampled, in the order of `plan.sampling_requests`.

        Returns:
            (request, row) for each token that belongs to a request still wanted; `row` indexes `tokens`.
        """
        arrived = []
        for row, (request_id, token) in enumerate(zip(plan.sampling_requests, tokens, strict=True)):
            request = self._requests.get(request_id)
            if request is not None:
                request.in_flight -= 1
                request.output.append(token)
                arrived.append((request, row))
        return arrived

    def _schedule_decode(self, new_pages: list[NewPages]) -> list[DecodeRow]:
        rows: list[DecodeRow] = []
        position = 0
        while position < len(self._running):
            request = self._running[position]
            if not request.is_prefilling and request.steps < request.max_tokens and self._grow(request, new_pages):
                assert request.slot is not None
                rows.append(
                    DecodeRow(request_id=request.id, slot=request.slot, length=request.length, step=request.steps)
                )
                request.computed = request.length
                request.in_flight += 1
            position += 1
        return rows

    def _grow(self, request: Request, new_pages: list[NewPages]) -> bool:
        """Give a decoding request the page its next token needs, taking pages from younger requests if none is free.

        Returns False if the request itself was the youngest and had to give way.
        """
        missing = self.pages.pages_for(request.length) - len(request.pages)
        while missing > self.pages.num_free:
            victim = self._running[-1]
            self._preempt(victim, new_pages)
            if victim is request:
                return False
        if missing > 0:
            self._allocate(request, missing, new_pages)
        return True

    def _schedule_prefill(self, new_pages: list[NewPages]) -> list[PrefillChunk]:
        chunks: list[PrefillChunk] = []
        budget = self.max_prefill_pages
        for request in self._running:
            if budget and request.is_prefilling:
                chunks.append(self._chunk(request, budget))
                budget -= self.pages.pages_for(len(chunks[-1].tokens))
        while budget and (admitted := self._admit_next(new_pages)) is not None:
            chunks.append(self._chunk(admitted, budget))
            budget -= self.pages.pages_for(len(chunks[-1].tokens))
        return chunks

    def _admit_next(self, new_pages: list[NewPages]) -> Request | None:
        """Give the first waiting request a slot and pages for all its tokens, if there is room for it."""
        if not self._waiting or not self._free_slots:
            return None
        request = self._waiting[0]
        if request.in_flight:
            return None
        missing = self.pages.pages_for(request.length)
        # A page is left for each running request, or admitting one would soon preempt another.
        if self.pages.num_free - missing < len(self._running):
            return None
        del self._waiting[0]
        request.slot = self._free_slots.pop()
        request.prefill_target = request.length
        insort(self._running, request, key=_arrival)
        self._allocate(request, missing, new_pages)
        return request

    def _chunk(self, request: Request, max_pages: int) -> PrefillChunk:
        assert request.slot is not None
        start = request.computed
        end = min(request.prefill_target, start + max_pages * self.pages.page_size)
        known = len(request.prompt)
        tokens = request.prompt[start:end] + tuple(request.output[max(start - known, 0) : max(end - known, 0)])
        samples = end == request.prefill_target
        chunk = PrefillChunk(
            request_id=request.id, slot=request.slot, start=start, tokens=tokens, samples=samples, step=request.steps
        )
        request.computed = end
        request.in_flight += samples
        return chunk

    def _allocate(self, request: Request, count: int, new_pages: list[NewPages]) -> None:
        assert request.slot is not None
        pages = self.pages.allocate(count, after=request.pages[-1] if request.pages else None)
        new_pages.append(NewPages(slot=request.slot, first=len(request.pages), pages=tuple(pages)))
        request.pages += pages

    def _preempt(self, request: Request, new_pages: list[NewPages]) -> None:
        """Take a request's pages and slot; it will be prefilled again, its output so far included."""
        new_pages[:] = [change for change in new_pages if change.slot != request.slot]
        self._running.remove(request)
        self._release(request)
        request.computed = request.prefill_target = 0
        request.preemptions += 1
        self.preemptions += 1
        insort(self._waiting, request, key=_arrival)

    def _release(self, request: Request) -> None:
        assert request.slot is not None
        self.pages.free(request.pages)
        request.pages = []
        self._free_slots.append(request.slot)
        request.slot = None


def _arrival(request: Request) -> int:
    return request.id
