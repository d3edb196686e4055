"""The scheduler's rules over requests in sums: who is prefilled, who is evicted, preempted and fetched back."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from ..cost_model.prediction import prompt_pairs
from ..policy import Decision
from ..roster import Roster
from .request_pool import Population, SimRequest


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a simulated engine may use.

    Attributes:
        device_kv_tokens, host_kv_tokens: KV that either side holds, in whole pages.
        page_size: tokens in a page.
        max_prefill_tokens: prompt tokens of an iteration.
        max_num_seqs: requests on the device at once.
        prefill_alone: prompts are computed in iterations of their own, while decoding requests rest.
    """

    device_kv_tokens: int
    host_kv_tokens: int = 0
    page_size: int = 16
    max_prefill_tokens: int = 2048
    max_num_seqs: int = 256
    prefill_alone: bool = False

    def __post_init__(self) -> None:
        for name in ("device_kv_tokens", "host_kv_tokens", "page_size", "max_prefill_tokens", "max_num_seqs"):
            value, least = getattr(self, name), 0 if name == "host_kv_tokens" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is needed")
        if self.device_kv_tokens < self.page_size:
            raise ValueError(f"device_kv_tokens is {self.device_kv_tokens}; a page alone holds {self.page_size}")


class Tiers:
    """All requests of a simulation that have arrived, and the memory of both sides.

    Args:
        machine: the memory.

    Attributes:
        device, host: decoding requests.
        waiting, prefilling: requests without pages, and those whose prompts are being computed, in order of arrival.
        landing: requests on their way back to the device.
        free: device pages that nobody holds.
        prefill_tokens, prefill_pairs: what the scheduled iteration computes of prompts, see `prompt_pairs`.
        completed: requests whose prompts it completes.
        moved_tokens: tokens whose KV it moves between the sides.
        evictions, fetches, preemptions: how many there were.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.device = Population(machine.page_size)
        self.host = Population(machine.page_size)
        self.waiting: list[SimRequest] = []
        self.prefilling: list[SimRequest] = []
        self.landing: list[SimRequest] = []
        self.free = machine.device_kv_tokens // machine.page_size
        self.waiting_tokens = self.waiting_output = 0
        self.prefill_tokens = 0
        self.prefill_pairs = 0.0
        self.completed: list[SimRequest] = []
        self.moved_tokens = 0
        self.evictions = self.fetches = self.preemptions = 0
        self._budget = max(1, machine.max_prefill_tokens // machine.page_size)

    @property
    def is_empty(self) -> bool:
        """Whether no request is left that has arrived."""
        return not (self.waiting or self.prefilling or self.landing or self.device.rows or self.host.rows)

    @property
    def free_host_tokens(self) -> float:
        """Tokens that newcomers to the host may bring: a page is left for each request there."""
        machine = self.machine
        return machine.host_kv_tokens - self.host.kv_tokens - self.host.rows * machine.page_size

    @property
    def decoding(self) -> int:
        """Device rows of the scheduled iteration."""
        return 0 if self.machine.prefill_alone and self.prefill_tokens else self.device.rows

    @property
    def likely_prefill(self) -> int:
        """Prompt tokens that the next iteration can compute if the policy lets requests go to the host."""
        machine = self.machine
        owed = sum(request.length - request.computed for request in self.prefilling)
        if self.waiting:
            length = self.waiting[0].length
            evictable = self._evictable_pages if machine.host_kv_tokens else 0
            fitting = max(0, self.free - self._on_device + evictable) // (self._pages(length) + 1)
            owed += min(self.waiting_tokens, fitting * length)
        return min(owed, self._budget * machine.page_size)

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
            self.free -= self.device.pages(request)
        for request in host:
            self.host.join(request)
        for request in waiting:
            self.wait(request)

    def wait(self, request: SimRequest) -> None:
        """Queue a request."""
        insort(self.waiting, request, key=lambda other: other.id)
        self.waiting_tokens += request.length
        self.waiting_output += request.output - request.done

    def schedule(self, decision: Decision) -> None:
        """Choose what the next iteration does, the riding of host rows aside."""
        self.moved_tokens = 0
        for request in self.landing:
            self.device.join(request)
        self.landing.clear()
        growing = not (self.machine.prefill_alone and (self.waiting or self.prefilling))
        self._make_room(decision, growing=growing)
        if growing:
            self._grow(decision)
        self._prefill(self.device.growth if growing else 0)
        if not growing and not self.prefill_tokens:
            self._grow(decision)
        self._keep_host_within()
        self._fetch_back()

    def advance(self, *, decoding: int, host_tokens: float, steps: int) -> list[SimRequest]:
        """Let time pass: `steps` iterations in which each host request produces `host_tokens`; return who has ended."""
        if decoding:
            self.free -= self.device.pages_in(steps)
            self.device.clock += steps
        self.host.clock += host_tokens * steps
        ended = list(self.device.ended())
        self.free += sum(self._pages(request.length - 1) for request in ended)
        ended += self.host.ended()
        for request in self.completed:
            request.done += 1
            if request.done < request.output:
                self.device.join(request)
            else:
                self.free += self._pages(request.length - 1)
                ended.append(request)
        return ended

    def vacancies(self, decision: Decision) -> int:
        """Return how many more requests may be on the host."""
        return decision.max_host_requests - self.host.rows if self.machine.host_kv_tokens else 0

    @property
    def _on_device(self) -> int:
        return self.device.rows + len(self.prefilling) + len(self.landing)

    @property
    def _evictable_pages(self) -> int:
        """Pages of decoding device requests, and the one that is left free for each of them."""
        prefilled = sum(self._pages(request.length) for request in self.prefilling)
        return self.machine.device_kv_tokens // self.machine.page_size - self.free - prefilled + self.device.rows

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.machine.page_size)

    def _make_room(self, decision: Decision, *, growing: bool) -> None:
        """Evict the youngest device requests while that lets waiting ones in, as many as an iteration can prefill."""
        vacancies = self.vacancies(decision)
        if not self.waiting or vacancies < 1:
            return
        budget = self._budget - sum(self._pages(r.length - r.computed) for r in self.prefilling)
        free = self.free - (self.device.growth if growing else 0)
        rows, room, young = self._on_device, self.free_host_tokens, self.device.by_age()
        for newcomer in self.waiting:
            need = self._pages(newcomer.length)
            if budget <= 0:
                return
            victims: list[SimRequest] = []
            while free - need < rows or rows >= self.machine.max_num_seqs:
                victim = next(young, None)
                if victim is None or len(victims) >= vacancies:
                    return
                held = self.device.current_length(victim)
                room -= self._pages(held) * self.machine.page_size + self.machine.page_size
                if room < 0:
                    return
                victims.append(victim)
                rows -= 1
                free += self._pages(held)
            for victim in victims:
                self._evict(victim)
            vacancies -= len(victims)
            free, rows, budget = free - need, rows + 1, budget - need

    def _grow(self, decision: Decision) -> None:
        """Make the youngest give way where the next token of everybody needs more pages than are free."""
        while self.device.growth > self.free:
            youngest = self.device.youngest()
            newest = self.prefilling[-1] if self.prefilling else None
            if youngest is None:
                return
            need = (self._pages(self.device.current_length(youngest)) + 1) * self.machine.page_size
            if self.vacancies(decision) > 0 and need <= self.free_host_tokens:
                self._evict(youngest)
            elif newest is not None and newest.id > youngest.id:
                self.prefilling.remove(newest)
                self._preempt(newest, self._pages(newest.length))
            else:
                pages = self.device.pages(youngest)
                self.device.leave(youngest)
                self._preempt(youngest, pages)

    def _evict(self, request: SimRequest) -> None:
        pages = self.device.pages(request)
        self.device.leave(request)
        self.host.join(request)
        self.free += pages
        self.moved_tokens += pages * self.machine.page_size
        self.evictions += 1

    def _preempt(self, request: SimRequest, pages: int) -> None:
        self.free += pages
        self.preemptions += 1
        request.computed = 0
        self.wait(request)

    def _prefill(self, reserved: int) -> None:
        """Compute prompts within the budget, and admit whom the pages beside the `reserved` ones take."""
        self.prefill_tokens, self.prefill_pairs, self.completed = 0, 0.0, []
        budget = self._budget
        for request in self.prefilling:
            if budget:
                budget -= self._chunk(request, budget)
        while budget and self.waiting:
            request, rows = self.waiting[0], self._on_device
            need = self._pages(request.length)
            if rows >= self.machine.max_num_seqs or self.free - reserved - need < rows:
                break
            del self.waiting[0]
            self.waiting_tokens -= request.length
            self.waiting_output -= request.output - request.done
            self.free -= need
            insort(self.prefilling, request, key=lambda other: other.id)
            budget -= self._chunk(request, budget)
        if self.completed:
            self.prefilling = [r for r in self.prefilling if r.computed < r.length]

    def _chunk(self, request: SimRequest, budget: int) -> int:
        tokens = min(request.length - request.computed, budget * self.machine.page_size)
        self.prefill_tokens += tokens
        self.prefill_pairs += prompt_pairs(tokens, request.computed)
        request.computed += tokens
        if request.computed == request.length:
            self.completed.append(request)
        return self._pages(tokens)

    def _keep_host_within(self) -> None:
        while self.free_host_tokens + self.host.rows * self.machine.page_size < self.host.rows:
            youngest = self.host.youngest()
            assert youngest is not None
            self.host.leave(youngest)
            self._preempt(youngest, 0)

    def _fetch_back(self) -> None:
        """Begin to move host requests to the device, the oldest first, while it has room that nobody waits for."""
        if self.waiting:
            return
        while (oldest := self.host.oldest()) is not None:
            need, rows = self._pages(self.host.current_length(oldest)), self._on_device
            if rows >= self.machine.max_num_seqs or self.free - self.device.growth - need <= rows:
                return
            self.host.leave(oldest)
            held = self._pages(oldest.length - 1)
            self.free -= held
            self.moved_tokens += held * self.machine.page_size
            self.landing.append(oldest)
            self.fetches += 1
