"""A plan in the making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .plan import Cohort, DecodeRow, Eviction, Fetch, Landing, NewPages, Plan, PrefillChunk
from .request import Request


@dataclass(kw_only=True)
class Draft:
    """The parts of a `Plan` as far as they have been decided."""

    sliding_window: int | None = None
    prefill: list[PrefillChunk] = field(default_factory=list)
    decode: list[DecodeRow] = field(default_factory=list)
    cohorts: list[Cohort] = field(default_factory=list)
    new_pages: list[NewPages] = field(default_factory=list)
    new_host_pages: list[NewPages] = field(default_factory=list)
    evictions: list[Eviction] = field(default_factory=list)
    fetches: list[Fetch] = field(default_factory=list)
    landings: list[Landing] = field(default_factory=list)

    @property
    def has_device_rows(self) -> bool:
        return bool(self.prefill or self.decode)

    @property
    def is_empty(self) -> bool:
        moves = self.evictions or self.fetches or self.landings
        return not (self.has_device_rows or self.cohorts or moves)

    def add_pages(self, request: Request, pages: Sequence[int]) -> None:
        """Note device pages that a request receives beside those it has."""
        self.new_pages.append(
            NewPages(slot=request.held_slot, first=request.given_back + len(request.pages), pages=tuple(pages))
        )

    def add_host_pages(self, request: Request, pages: Sequence[int]) -> None:
        """Note host pages that a request receives beside those it has."""
        first = request.given_back + len(request.host_pages)
        self.new_host_pages.append(NewPages(slot=request.held_slot, first=first, pages=tuple(pages)))

    def forget_pages(self, slot: int) -> None:
        """Drop what a slot received in this plan and has given back."""
        self.new_pages[:] = [change for change in self.new_pages if change.slot != slot]
        self.new_host_pages[:] = [change for change in self.new_host_pages if change.slot != slot]

    def add_chunk(self, request: Request, end: int) -> None:
        """Let a request's tokens up to `end` be prefilled; the last ones sample."""
        start, known = request.computed, len(request.prompt)
        tokens = request.prompt[start:end] + tuple(request.output[max(start - known, 0) : max(end - known, 0)])
        chunk = PrefillChunk(
            request_id=request.id,
            slot=request.held_slot,
            start=start,
            tokens=tokens,
            samples=end == request.prefill_target,
            step=request.steps,
        )
        self.prefill.append(chunk)

    def add_row(self, request: Request) -> None:
        """Let a device request decode."""
        row = DecodeRow(request_id=request.id, slot=request.held_slot, length=request.length, step=request.steps)
        self.decode.append(row)

    def evict(self, request: Request) -> None:
        """Move what a request's host pages take from its first device pages."""
        pages = request.pages[: len(request.host_pages)]
        eviction = Eviction(
            request_id=request.id,
            slot=request.held_slot,
            first=request.given_back,
            device_pages=tuple(pages),
            host_pages=tuple(request.host_pages),
        )
        self.forget_pages(request.held_slot)
        self.evictions.append(eviction)

    def fetch(self, request: Request) -> None:
        """Begin to move a request's host pages to the device."""
        self.fetches.append(Fetch(request_id=request.id, host_pages=tuple(request.host_pages)))

    def land(self, request: Request) -> None:
        """Write a request's fetched pages to its device pages."""
        landing = Landing(
            request_id=request.id,
            slot=request.held_slot,
            first=request.given_back,
            device_pages=tuple(request.pages),
        )
        self.landings.append(landing)

    def plan(self, *, number: int, num_layers: int, strategy: str) -> Plan:
        """Return what has been decided."""
        return Plan(
            number=number,
            num_layers=num_layers,
            strategy=strategy,
            sliding_window=self.sliding_window,
            prefill=tuple(self.prefill),
            decode=tuple(self.decode),
            cohorts=tuple(self.cohorts),
            new_pages=tuple(self.new_pages),
            new_host_pages=tuple(self.new_host_pages),
            evictions=tuple(self.evictions),
            fetches=tuple(self.fetches),
            landings=tuple(self.landings),
        )
