"""First-come-first-served continuous batching over device pages and, if there is a host tier, host pages.

Three verbs: `add` a request, `schedule` the next plan, `update` with the tokens of a plan that has run. Plans are made
one iteration ahead: when a plan is scheduled the tokens of the one before it have usually not arrived, so the scheduler
counts tokens in flight and never needs their values, except to prefill a preempted request again.

The rules are those of `admission`; here are the requests, their pages and slots.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Sequence
from operator import attrgetter

from .admission import Tier, gives_way, in_order, make_room, prefill
from .capacity import Capacity
from .cohorts import Cohorts, Departure
from .page_allocator import PageAllocator
from .plan import Plan
from .plan_builder import Draft
from .policy import Decision, FixedPolicy, Policy
from .request import Request
from .scheduler_state import Situation, situation
from .sliding_window import give_back
from .strategies import DEVICE_ONLY, named
from .waiting_queue import WaitingQueue

_arrival = attrgetter("id")
_longest_rested = attrgetter("last_turn", "id")


class Scheduler:
    """Decides which requests run in the next iteration, and where.

    Args:
        capacity: pages and requests of either side, and prompt tokens of an iteration.
        num_layers: L of the model.
        policy: chooses the strategy of each plan; device_only if None.

    Attributes:
        pages, host_pages: which page of either side is free.
    """

    def __init__(self, capacity: Capacity, *, num_layers: int, policy: Policy | None = None) -> None:
        self.capacity = capacity
        self.pages = PageAllocator(capacity.device_pages, capacity.page_size)
        self.host_pages = PageAllocator(capacity.host_pages, capacity.page_size)
        self.num_layers = num_layers
        self.policy: Policy = policy or FixedPolicy(strategy=DEVICE_ONLY.name)
        self.preemptions = self.evictions = self.landings = 0
        self.decision = Decision(strategy=DEVICE_ONLY.name)
        self._plans = 0
        self._requests: dict[int, Request] = {}
        self._waiting = WaitingQueue()
        self._running: list[Request] = []
        self.cohorts = Cohorts(num_layers)
        self.free_slots = list(range(capacity.slots))[::-1]

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_on_host(self) -> int:
        """Running requests whose KV is on the host."""
        return sum(request.side == "host" for request in self._running)

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    @property
    def is_fetching(self) -> bool:
        """Whether the KV of some request is on its way to the device."""
        return any(request.fetching for request in self._running)

    def check(self, request: Request) -> None:
        """Refuse a request that `add` could not take.

        Raises:
            ValueError: its id is taken, or the device pages can never hold its prompt and output: it is computed there
                from the start, and again after a preemption.
        """
        if request.id in self._requests:
            raise ValueError(f"request id {request.id} is already in use")
        if not self.capacity.holds(len(request.prompt) + request.max_tokens - 1):
            raise ValueError(
                f"request {request.id}: prompt of {len(request.prompt)} and max_tokens={request.max_tokens} exceed "
                f"the device KV cache of {self.capacity.longest} tokens"
            )

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: see `check`; nothing has changed then.
        """
        self.check(request)
        self._requests[request.id] = request
        self._waiting.add(request)

    def finish(self, request_id: int) -> None:
        """Remove a request in whatever state it is and free what it holds; tokens still in flight will be ignored."""
        request = self._requests.pop(request_id)
        if request.slot is None:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
            self._release(request)
        if not self._requests:
            self.cohorts.clear()

    def fetch_arrived(self, request_id: int) -> bool:
        """Note that a fetch has come to its end; returns whether the request is still there to land."""
        request = self._requests.get(request_id)
        if request is None or not request.fetching:
            return False
        request.fetched = True
        return True

    def schedule(self) -> Plan | None:
        """Make the next plan, or return None if there is nothing to do until tokens or fetched pages arrive."""
        if not self._requests:
            return None
        draft, preemptions = Draft(sliding_window=self.capacity.sliding_window), self.preemptions
        if any(request.wants_token or request.is_prefilling for request in self._running) or self._waiting:
            self.decision = self.policy.decide(self.situation())
        verbs = in_order(
            land=self._land,
            make_room=self._make_room,
            grow=self._schedule_decode,
            prefill=self._schedule_prefill,
            fetch_back=self._fetch_back,
            ride=self._schedule_host,
        )
        for verb in verbs:
            verb(draft)
        if draft.is_empty:
            # Whoever has just lost its pages may be all that there is to do.
            return self.schedule() if self.preemptions > preemptions else None
        give_back(self._running, self.capacity, self.pages, self.host_pages, draft)
        plan = draft.plan(number=self._plans, num_layers=self.num_layers, strategy=self.decision.strategy)
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

    def situation(self) -> Situation:
        """Return the requests that exist and the memory that is free, in counts."""
        return situation(
            self._running,
            self._waiting,
            num_layers=self.num_layers,
            plan=self._plans,
            capacity=self.capacity,
            pages=self.pages,
            host_pages=self.host_pages,
        )

    @property
    def _on_device(self) -> list[Request]:
        """Requests that hold or are about to hold a row on the device, in order of arrival."""
        return [request for request in self._running if request.side == "device" or request.fetching]

    def _device_tier(self, growth: int = 0) -> Tier:
        return Tier(self.pages.num_free - growth, len(self._on_device), self.capacity.max_num_seqs)

    def _host_tier(self) -> Tier:
        most = min(self.capacity.max_host_seqs, self.decision.max_host_requests)
        return Tier(self.host_pages.num_free, self.num_on_host, most)

    def _need(self, request: Request) -> int:
        """Pages of a decoding request, its next token's included."""
        return self.capacity.live_pages(request.length)

    def _of_prompt(self, request: Request) -> int:
        """Pages of a newcomer."""
        return self.capacity.prompt_pages(request.length)

    def _held(self, request: Request) -> int:
        """Pages of the tokens that have been computed and are still read."""
        return self.pages.pages_for(request.computed) - request.given_back

    def _can_leave(self, request: Request) -> bool:
        """Whether a request is on the device between two tokens."""
        return request.side == "device" and request.wants_token

    def _land(self, draft: Draft) -> None:
        for request in self._running:
            if request.fetched:
                draft.land(request)
                self.host_pages.free(request.host_pages)
                request.host_pages = []
                request.side, request.fetching, request.fetched = "device", False, False
                request.landings += 1
                self.landings += 1

    def _make_room(self, draft: Draft) -> None:
        """Move whom the policy names, and evict the youngest as far as that lets those in who wait first."""
        for request in self._running if self.decision.evict else ():
            may = request.id in self.decision.evict and self._can_leave(request)
            if may and self._host_tier().holds(self._held(request)):
                self._evict(request, draft)
        for request in list(self._running) if self.decision.preempt else ():
            if request.id in self.decision.preempt:
                self._preempt(request, draft)
        if not self._waiting or (host := self._host_tier()).is_full:
            return
        under_way = (r.prefill_target - r.computed for r in self._running if r.is_prefilling)
        young = [request for request in reversed(self._on_device) if self._can_leave(request)]
        _, leaving = make_room(
            # The tokens of one that was preempted must have come before it is computed again.
            map(self._of_prompt, itertools.takewhile(lambda request: not request.in_flight, self._waiting)),
            iter(young),
            self._need,
            self.capacity.max_prefill_pages - sum(map(self.pages.pages_for, under_way)),
            self._device_tier(growth=sum(self._need(request) - len(request.pages) for request in young)),
            host,
        )
        for request in leaving:
            self._evict(request, draft)

    def _evict(self, request: Request, draft: Draft) -> None:
        request.host_pages = self.host_pages.allocate(self._held(request))
        draft.evict(request)
        self.pages.free(request.pages)
        request.pages = []
        request.side = "host"
        request.last_turn = self._plans
        request.evictions += 1
        self.evictions += 1

    def _schedule_decode(self, draft: Draft) -> None:
        # Growing may evict or preempt requests further on in the list, or this one.
        for request in list(self._running):
            if request.slot is not None and self._can_leave(request) and self._grow(request, draft):
                draft.add_row(request)
                request.computed = request.length
                request.in_flight += 1

    def _grow(self, request: Request, draft: Draft) -> bool:
        """Give a decoding request the page its next token needs; returns False if it had to give way itself."""
        missing = self._need(request) - len(request.pages)
        while missing > self.pages.num_free:
            on_device = self._on_device
            behind = reversed(on_device[on_device.index(request) :])
            giving = gives_way(filter(self._can_leave, behind), self._need, self._host_tier())
            if giving is not None:
                self._evict(giving, draft)
            else:
                giving = on_device[-1]
                self._preempt(giving, draft)
            if giving is request:
                return False
        if missing > 0:
            self._allocate(request, missing, draft)
        return True

    def _schedule_prefill(self, draft: Draft) -> None:
        prefill(
            self.capacity.max_prefill_pages,
            (request for request in self._running if request.is_prefilling),
            lambda: self._admit_next(draft),
            lambda request, pages: self._add_chunk(request, pages, draft),
        )

    def _admit_next(self, draft: Draft) -> Request | None:
        """Give the first waiting request a slot and the pages of its prompt, if there is room for it."""
        request = self._waiting.first
        if request is None or request.in_flight or not self._device_tier().admits(self._of_prompt(request)):
            return None
        self._waiting.remove(request)
        request.slot = self.free_slots.pop()
        request.prefill_target = request.length
        insort(self._running, request, key=_arrival)
        self._allocate(request, self._of_prompt(request), draft)
        return request

    def _add_chunk(self, request: Request, max_pages: int, draft: Draft) -> int:
        """Prefill the next tokens of a request; returns the pages they fill."""
        start = request.computed
        end = min(request.prefill_target, start + max_pages * self.pages.page_size)
        draft.add_chunk(request, end)
        request.computed = end
        request.in_flight += end == request.prefill_target
        return self.pages.pages_for(end - start)

    def _schedule_host(self, draft: Draft) -> None:
        """Let cohorts ride on, and let resting requests begin tokens in new ones."""
        if not self.capacity.host_pages:
            return
        # A request whose token arrives with this plan can begin the next one only in a later plan.
        resting = sorted((r for r in self._running if r.is_resting), key=_longest_rested)
        strategy = named(self.decision.strategy)
        through = strategy.through or not draft.has_device_rows
        draining = self.cohorts.ride(draft, through=through)
        if through and draining:
            return
        if draft.has_device_rows:
            departures = strategy.departures(self.decision.lanes, self.cohorts, self._plans)
        else:
            # Nothing else would move them.
            lanes = self.decision.lanes or (self.capacity.max_host_seqs,)
            departures = (Departure(size, through=True) for size in lanes)
        for departure in departures:
            rows = []
            if departure.hurried:
                resting.sort(key=lambda request: (request.last_turn != self._plans - 1, request.id))
            while resting and len(rows) < departure.rows:
                request = resting.pop(0)
                # Another one's growth may have preempted it.
                here = request.slot is not None and request.is_resting
                if here and request.wants_token and self._grow_on_host(request, draft):
                    rows.append(request)
            # The same may have happened to one that was to depart.
            rows = [request for request in rows if request.slot is not None]
            if rows:
                through, hurried = departure.through, departure.hurried
                self.cohorts.depart(rows, draft, plan=self._plans, through=through, hurried=hurried)
            if departure.hurried:
                resting.sort(key=_longest_rested)

    def _grow_on_host(self, request: Request, draft: Draft) -> bool:
        """Give a resting request the host page its next token needs; returns False if it cannot begin one."""
        missing = self._need(request) - len(request.host_pages)
        while missing > self.host_pages.num_free:
            resting = [other for other in self._running if other.is_resting]
            if resting[-1] is request and any(r.side == "host" for r in self._running if r is not request):
                return False
            self._preempt(resting[-1], draft)
            if resting[-1] is request:
                return False
        if missing > 0:
            pages = self.host_pages.allocate(missing, after=request.host_pages[-1] if request.host_pages else None)
            draft.add_host_pages(request, pages)
            request.host_pages += pages
        return True

    def _fetch_back(self, draft: Draft) -> None:
        """Begin to move resting requests to the device: whom the policy names, others into room nobody waits for."""
        for request in self._running if self.decision.fetch else ():
            may = request.id in self.decision.fetch and request.is_resting and request.wants_token
            if may and self._device_tier().holds(self._held(request)):
                self._fetch(request, draft)
        if self._waiting or not self.capacity.host_pages:
            return
        for request in self._running:
            if not (request.is_resting and request.wants_token and request.last_turn < self._plans):
                continue
            if not self._device_tier().takes_over(self._need(request)):
                return
            self._fetch(request, draft)

    def _fetch(self, request: Request, draft: Draft) -> None:
        request.pages = self.pages.allocate(self._held(request))
        request.fetching = True
        draft.fetch(request)

    def _allocate(self, request: Request, count: int, draft: Draft) -> None:
        pages = self.pages.allocate(count, after=request.pages[-1] if request.pages else None)
        draft.add_pages(request, pages)
        request.pages += pages

    def _preempt(self, request: Request, draft: Draft) -> None:
        """Take a request's pages and slot; it will be prefilled again, its output so far included."""
        draft.forget_pages(request.held_slot)
        self._running.remove(request)
        self._release(request)
        request.computed = request.prefill_target = 0
        request.preemptions += 1
        self.preemptions += 1
        self._waiting.add(request)

    def _release(self, request: Request) -> None:
        self.pages.free(request.pages)
        self.host_pages.free(request.host_pages)
        self.cohorts.leave(request)
        request.pages, request.host_pages, request.given_back = [], [], 0
        request.side, request.fetching, request.fetched = "device", False, False
        self.free_slots.append(request.held_slot)
        request.slot = None
