"""A plan in the making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .plan import Cohort, DecodeRow, Eviction, Fetch, Landing, NewPages, Plan, PrefillChunk


@dataclass(kw_only=True)
class Draft:
    """The parts of a `Plan` as far as they have been decided."""

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

    def add_pages(self, slot: int, first: int, pages: Sequence[int]) -> None:
        """Note device pages that a slot has received."""
        self.new_pages.append(NewPages(slot=slot, first=first, pages=tuple(pages)))

    def add_host_pages(self, slot: int, first: int, pages: Sequence[int]) -> None:
        """Note host pages that a slot has received."""
        self.new_host_pages.append(NewPages(slot=slot, first=first, pages=tuple(pages)))

    def forget_pages(self, slot: int) -> None:
        """Drop what a slot received in this plan and has given back."""
        self.new_pages[:] = [change for change in self.new_pages if change.slot != slot]
        self.new_host_pages[:] = [change for change in self.new_host_pages if change.slot != slot]

    def plan(self, *, number: int, num_layers: int, strategy: str) -> Plan:
        """Return what has been decided."""
        return Plan(
            number=number,
            num_layers=num_layers,
            strategy=strategy,
            prefill=tuple(self.prefill),
            decode=tuple(self.decode),
            cohorts=tuple(self.cohorts),
            new_pages=tuple(self.new_pages),
            new_host_pages=tuple(self.new_host_pages),
            evictions=tuple(self.evictions),
            fetches=tuple(self.fetches),
            landings=tuple(self.landings),
        )
