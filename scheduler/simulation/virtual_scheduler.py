"""The books of a simulated engine: all requests that have arrived, in sums, moved by the rules of `admission`."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator

from ..admission import Tier, fits, gives_way, in_order, make_room, prefill
from ..capacity import Capacity
from ..cost_model.prediction import prompt_pairs
from ..policy import Decision
from ..scheduler_state import Roster
from .request_pool import RequestPool, SimRequest


class VirtualScheduler:
    """All requests of a simulation that have arrived, and the memory of both sides.

    Args:
        capacity: pages and requests of either side, and prompt tokens of an iteration.
        prefill_alone: prompts are computed in iterations of their own, while decoding requests rest.

    Attributes:
        device, host: decoding requests.
        waiting, prefilling: requests without pages, and those whose prompts are being computed, in order of arrival.
        landing: requests on their way back to the device, which hold pages on both sides.
        prefill_tokens, prefill_pairs: what the scheduled iteration computes of prompts, see `prompt_pairs`.
        completed: requests whose prompts it completes.
        moved_tokens: tokens whose KV it moves between the sides.
        evictions, fetches, preemptions: how many there were.
    """

    def __init__(self, capacity: Capacity, *, prefill_alone: bool = False) -> None:
        self.capacity = capacity
        self.prefill_alone = prefill_alone
        self.device = RequestPool(capacity.page_size, capacity.sliding_window)
        self.host = RequestPool(capacity.page_size, capacity.sliding_window)
        self.waiting: list[SimRequest] = []
        self.prefilling: list[SimRequest] = []
        self.landing: list[SimRequest] = []
        self.waiting_tokens = self.waiting_output = 0
        self.prefill_tokens = 0
        self.prefill_pairs = 0.0
        self.completed: list[SimRequest] = []
        self.moved_tokens = 0
        self.evictions = self.fetches = self.preemptions = 0
        self._budget = capacity.max_prefill_pages
        self._unreserved, self._host_pages = capacity.device_pages, capacity.host_pages
        self._landing_pages = self._recycled = 0
        self._just_evicted: set[int] = set()
        self._device_rests = self._unsettled = False
        self._verbs = in_order(
            land=self._land,
            make_room=self._make_room,
            grow=self._grow,
            prefill=self._prefill,
            fetch_back=self._fetch_back,
            ride=self._keep_host_within,
        )

    @property
    def is_empty(self) -> bool:
        """Whether no request is left that has arrived."""
        return not (self.waiting or self.prefilling or self.landing or self.device.rows or self.host.rows)

    @property
    def repeats(self) -> bool:
        """Whether iterations like the scheduled one may follow: nobody comes, moves, or may come next."""
        return not (self.prefilling or self.landing or self.moved_tokens or self._unsettled)

    @property
    def is_idle(self) -> bool:
        """Whether the device has nothing to do in the scheduled iteration."""
        return not (self.prefill_tokens or self.device.rows)

    @property
    def awaits_pages(self) -> bool:
        """Whether pages that a window leaves behind may let somebody in."""
        return self.capacity.sliding_window is not None and bool(self.waiting or self.host.rows)

    @property
    def free(self) -> int:
        """Device pages that nobody holds."""
        return self._unreserved - self.device.held

    @property
    def host_free(self) -> int:
        """Host pages that nobody holds."""
        return self._host_pages - self.host.held - self._landing_pages

    @property
    def decoding(self) -> int:
        """Device rows of the scheduled iteration."""
        return 0 if self.prefill_alone and self.prefill_tokens else self.device.rows

    @property
    def likely_prefill(self) -> int:
        """Prompt tokens that the next iteration can compute if the policy lets requests go to the host."""
        owed = sum(request.length - request.computed for request in self.prefilling)
        if self.waiting:
            length = self.waiting[0].length
            # A page is left free for each decoding request that could leave.
            evictable = self.device.held + self._landing_pages + self.device.rows if self._host_pages else 0
            fitting = max(0, self.free - self._on_device + evictable) // (self.capacity.prompt_pages(length) + 1)
            owed += min(self.waiting_tokens, fitting * length)
        return min(owed, self._budget * self.capacity.page_size)

    def roster(self) -> Roster:
        """Return the lengths of all requests."""
        device, device_ids = self.device.lengths()
        host, host_ids = self.host.lengths()
        for request in (*self.landing, *self.prefilling):
            device.append((request.length, request.output - request.done))
            device_ids.append(request.id)
        coming = [(request.length, request.output - request.done) for request in self.waiting]
        return Roster(device, host, coming, [*device_ids, *host_ids, *(request.id for request in self.waiting)])

    def hold(self, device: Iterable[SimRequest], host: Iterable[SimRequest], waiting: Iterable[SimRequest]) -> None:
        """Take in requests that are under way, in order of arrival."""
        for request in device:
            self.device.join(request)
        for request in host:
            self.host.join(request)
        for request in waiting:
            self.wait(request)

    def wait(self, request: SimRequest) -> None:
        """Queue a request."""
        insort(self.waiting, request, key=_arrival)
        self.waiting_tokens += request.length
        self.waiting_output += request.output - request.done

    def schedule(self, decision: Decision) -> None:
        """Choose what the next iteration does, the riding of host rows aside."""
        self.moved_tokens = 0
        self._just_evicted.clear()
        preemptions = self.preemptions
        self._device_rests = self.prefill_alone and bool(self.waiting or self.prefilling)
        for verb in self._verbs:
            verb(decision)
        if self.preemptions > preemptions and self.is_idle and not (self.host.rows or self.moved_tokens):
            # Whoever has just lost its pages is all that there is to do.
            self.schedule(decision)
            return
        # Pages that somebody has lost may let the first who waits in with the next one.
        self._unsettled = self.preemptions > preemptions and self._first_finds_room(decision)

    def advance(self, *, decoding: int, host_tokens: float, steps: int) -> list[SimRequest]:
        """Let time pass: `steps` iterations in which each host request produces `host_tokens`; return who has ended."""
        if decoding:
            self.device.advance(steps)
        ended = list(self.device.ended())
        if self.host.rows:
            self.host.advance(host_tokens * steps)
            ended += self.host.ended()
        if self.completed:
            self.prefilling = [request for request in self.prefilling if request.computed < request.length]
        self._unreserved += self._recycled
        self._recycled = 0
        for request in self.completed:
            self._unreserved += self.capacity.prompt_pages(request.length, request.length)
            request.done += 1
            if request.done < request.output:
                self.device.join(request)
            else:
                ended.append(request)
        return ended

    @property
    def _on_device(self) -> int:
        return self.device.rows + len(self.prefilling) + len(self.landing)

    def _device_tier(self, growth: int) -> Tier:
        return Tier(self.free - growth, self._on_device, self.capacity.max_num_seqs)

    def _host_tier(self, decision: Decision) -> Tier:
        return Tier(self.host_free, self.host.rows, min(self.capacity.max_host_seqs, decision.max_host_requests))

    def _need(self, request: SimRequest) -> int:
        """Pages of a decoding device request, its next token's included."""
        return self.capacity.live_pages(self.device.current_length(request))

    def _land(self, decision: Decision) -> None:
        if self.landing:
            for request in self.landing:
                self.device.join(request)
            self.landing.clear()
            self._unreserved += self._landing_pages
            self._landing_pages = 0

    def _make_room(self, decision: Decision) -> None:
        """Evict the youngest device requests as far as that lets the first waiting requests in."""
        if not (self.waiting and self._host_pages) or (host := self._host_tier(decision)).is_full:
            return
        _, leaving = make_room(
            (self.capacity.prompt_pages(request.length) for request in self.waiting),
            self.device.by_age(),
            self._need,
            self._budget - sum(self.capacity.pages(request.length - request.computed) for request in self.prefilling),
            self._device_tier(0 if self._device_rests else self.device.growth),
            host,
        )
        for request in leaving:
            self._evict(request)

    def _first_finds_room(self, decision: Decision) -> bool:
        hosted = self.host.rows or decision.max_host_requests
        if not self.waiting or not (hosted or self._device_rests or self.is_idle):
            # It has been seen by now: nobody may go to the host for it, or has lost pages there.
            return False
        first = self.capacity.prompt_pages(self.waiting[0].length)
        device = self._device_tier(0 if self.prefill_alone else self.device.growth)
        admitted, _ = make_room([first], self.device.by_age(), self._need, 1, device, self._host_tier(decision))
        return admitted == 1

    def _grow(self, decision: Decision) -> None:
        if not self._device_rests:
            self._give_way(decision)

    def _give_way(self, decision: Decision) -> None:
        """Let requests leave the device where the next token of everybody needs more pages than are free."""
        while (lacking := self.device.growth - self.free) > 0:
            giving = gives_way(self._behind(lacking), self._need, self._host_tier(decision))
            if giving is not None:
                self._evict(giving)
                continue
            youngest = self.device.youngest()
            assert youngest is not None
            if self.prefilling and self.prefilling[-1].id > youngest.id:
                youngest = self.prefilling.pop()
                self._unreserved += self.capacity.prompt_pages(youngest.length, youngest.computed)
            else:
                self.device.leave(youngest)
            self._preempt(youngest)

    def _behind(self, lacking: int) -> Iterator[SimRequest]:
        """Yield decoding requests, the youngest first, down to the oldest that lacks a page."""
        for request in self.device.by_age():
            yield request
            lacking -= self._need(request) - self.device.pages(request)
            if lacking <= 0:
                return

    def _evict(self, request: SimRequest) -> None:
        self.moved_tokens += self.device.pages(request) * self.capacity.page_size
        self.device.leave(request)
        self.host.join(request)
        self._just_evicted.add(request.id)
        self.evictions += 1

    def _preempt(self, request: SimRequest) -> None:
        self.preemptions += 1
        request.computed = 0
        self.wait(request)

    def _prefill(self, decision: Decision) -> None:
        """Compute prompts within the budget, and admit whom the pages take."""
        self.prefill_tokens, self.prefill_pairs, self.completed = 0, 0.0, []
        if self.waiting or self.prefilling:
            prefill(self._budget, self.prefilling, self._admit_next, self._chunk)
        if self._device_rests and not self.prefill_tokens:
            self._give_way(decision)

    def _admit_next(self) -> SimRequest | None:
        if not self.waiting:
            return None
        request = self.waiting[0]
        need = self.capacity.prompt_pages(request.length)
        growth = 0 if self._device_rests else self.device.growth
        if not fits(need, self.free - growth, self._on_device, self.capacity.max_num_seqs):
            return None
        del self.waiting[0]
        self.waiting_tokens -= request.length
        self.waiting_output -= request.output - request.done
        self._unreserved -= need
        insort(self.prefilling, request, key=_arrival)
        return request

    def _chunk(self, request: SimRequest, budget: int) -> int:
        tokens = min(request.length - request.computed, budget * self.capacity.page_size)
        self.prefill_tokens += tokens
        self.prefill_pairs += prompt_pairs(tokens, request.computed, self.capacity.sliding_window)
        before = self.capacity.prompt_pages(request.length, request.computed)
        request.computed += tokens
        self._recycled += before - self.capacity.prompt_pages(request.length, request.computed)
        if request.computed == request.length:
            self.completed.append(request)
        return self.capacity.pages(tokens)

    def _fetch_back(self, decision: Decision) -> None:
        """Begin to move host requests to the device, the oldest first, while it has room that nobody waits for."""
        if self.waiting or not self.host.rows:
            return
        for request in self.host.by_arrival():
            if request.id in self._just_evicted:
                continue
            need = self.capacity.live_pages(self.host.current_length(request))
            if not self._device_tier(self.device.growth).takes_over(need):
                return
            self.host.leave(request)
            held = self.capacity.held_pages(request.length - 1)
            self._landing_pages += held
            self._unreserved -= held
            self.moved_tokens += held * self.capacity.page_size
            self.landing.append(request)
            self.fetches += 1

    def _keep_host_within(self, decision: Decision) -> None:
        """Preempt the youngest where the next token of everybody on the host needs more pages than are free.

        The engine lets it rest until an older one needs its pages, which sums cannot say.
        """
        if not self.host.rows or not (decision.lanes or self.is_idle):
            return
        while self.host.growth > self.host_free:
            youngest = self.host.youngest()
            assert youngest is not None
            self.host.leave(youngest)
            self._preempt(youngest)


def _arrival(request: SimRequest) -> int:
    return request.id
