"""Plans that profiling runs: so many rows of such lengths, on pages of their own, without a scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..scheduler import Capacity, Cohort, DecodeRow, Eviction, Fetch, Landing, NewPages, Plan, PrefillChunk
from ..scheduler.strategies import DEVICE_ONLY, named


class ProfilePlans:
    """Makes plans over the pages of an engine that serves nobody.

    Rows have pages of their own as far as there are any, so that attention finds no context in a processor's cache that
    a request would not find there; beyond that they share.

    Args:
        num_layers: L.
        capacity: the executor's; host rows take the slots behind the device's.
    """

    def __init__(self, *, num_layers: int, capacity: Capacity) -> None:
        self.num_layers = num_layers
        self.capacity = capacity
        self._numbers = 0

    def decode(self, rows: int, length: int) -> Plan:
        """Return a plan of device rows alone, all of one length."""
        self._numbers += 1
        return Plan(
            number=self._numbers,
            strategy=DEVICE_ONLY.name,
            num_layers=self.num_layers,
            decode=tuple(_row(slot, length) for slot in range(rows)),
            new_pages=self._pages(rows, length, self.capacity.device_pages, first_slot=0),
        )

    def prefill(self, tokens: int, start: int = 0, *, rows: int = 0) -> Plan:
        """Return a plan with a chunk that ends a prompt, and device rows of one page beside it."""
        plan, slot = self.decode(rows, self.capacity.page_size), self.capacity.max_num_seqs - 1
        chunk = PrefillChunk(request_id=slot, slot=slot, start=start, tokens=(1,) * tokens, samples=True, step=0)
        own = self._pages(1, start + tokens, self.capacity.device_pages, first_slot=slot)
        return replace(plan, prefill=(chunk,), new_pages=(*plan.new_pages, *own))

    def hybrid(self, plan: Plan, strategy: str, lanes: Sequence[int], length: int, *, turn: int = 0) -> Plan:
        """Return a plan with cohorts of such sizes beside its device rows.

        Args:
            plan: of `decode`.
            strategy: cohorts that are spaced depart one iteration after the other.
            lanes: their rows.
            length: of all host rows' contexts.
            turn: which iteration of the run it is, counted from 0.
        """
        cohorts, slot = [], self.capacity.max_num_seqs
        for lane, rows in enumerate(lanes):
            token, first, last = named(strategy).place(lane, self.num_layers + 1, turn, self.num_layers)
            if token < 0:
                # It has not departed yet.
                continue
            riding = tuple(_row(slot + row, length) for row in range(rows))
            cohorts.append(Cohort(id=token * len(lanes) + lane, rows=riding, first=first, last=last))
            slot += rows
        pages = self._pages(sum(lanes), length, self.capacity.host_pages, first_slot=self.capacity.max_num_seqs)
        ordered = tuple(sorted(cohorts, key=lambda cohort: cohort.first))
        return replace(plan, strategy=strategy, cohorts=ordered, new_host_pages=pages)

    def evict(self, plan: Plan, pages: int) -> Plan:
        """Return a plan beside which a request of so many pages leaves for the host."""
        mover, ours, theirs = self.capacity.max_num_seqs, self._last(pages), tuple(range(pages))
        return replace(plan, evictions=(Eviction(request_id=mover, slot=mover, device_pages=ours, host_pages=theirs),))

    def fetch(self, plan: Plan, pages: int) -> Plan:
        """Return a plan beside which that request comes back."""
        return replace(plan, fetches=(Fetch(request_id=self.capacity.max_num_seqs, host_pages=tuple(range(pages))),))

    def land(self, plan: Plan, pages: int) -> Plan:
        """Return a plan before which what was fetched enters the device's pages."""
        mover = self.capacity.max_num_seqs
        return replace(plan, landings=(Landing(request_id=mover, slot=mover, device_pages=self._last(pages)),))

    def _last(self, pages: int) -> tuple[int, ...]:
        """The device's last pages."""
        return tuple(range(self.capacity.device_pages - pages, self.capacity.device_pages))

    def _pages(self, rows: int, length: int, pool: int, *, first_slot: int) -> tuple[NewPages, ...]:
        each = -(-length // self.capacity.page_size)
        return tuple(
            NewPages(slot=first_slot + row, first=0, pages=tuple((row * each + page) % pool for page in range(each)))
            for row in range(rows)
        )


def _row(slot: int, length: int) -> DecodeRow:
    return DecodeRow(request_id=slot, slot=slot, length=length, step=1)
