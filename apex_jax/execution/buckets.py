"""The shapes that programs are compiled for: batches are padded up to one of a few sizes, so that none compiles
late."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

from ..scheduler import Capacity, Padding

HOST_SEQS = 4
"""Host rows for each device row, where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Batch shapes of an executor.

    Args:
        capacity: rows of either side, prompt tiles (a tile is a page of tokens) and pages at most.
        table_width: pages of the longest sequence.
        ragged_attention: decode attention's cost follows each row's length, so page tables are never cut short.
    """

    capacity: Capacity
    table_width: int
    ragged_attention: bool

    @property
    def page_size(self) -> int:
        """Tokens of a page and of a tile."""
        return self.capacity.page_size

    @property
    def slots(self) -> int:
        """Requests that can have state in an executor; the id behind the last is the spare slot of padding."""
        return self.capacity.slots

    @cached_property
    def decode_rows(self) -> tuple[int, ...]:
        """Device rows of an iteration without prompts: powers of two."""
        return _steps(self.capacity.max_num_seqs, 2)

    @cached_property
    def mixed_rows(self) -> tuple[int, ...]:
        """Device rows beside a prefill: few, since the tiles' work hides padding rows."""
        most = self.capacity.max_num_seqs
        return (0, *(_steps(most, 8)[1:] if most > 1 else (1,)))

    @cached_property
    def host_rows(self) -> tuple[int, ...]:
        """Rows of a cohort: powers of four, since each is compiled beside every number of device rows."""
        most = self.capacity.max_host_seqs
        return _steps(most, 4, start=min(4, most)) if most else ()

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """Rows that sample in one iteration; every number of device rows is among them."""
        return tuple(sorted({*self.decode_rows, *_steps(self.slots, 2)}))

    @cached_property
    def tiles(self) -> tuple[int, ...]:
        """Prompt tiles of an iteration."""
        return _steps(self.capacity.max_prefill_pages, 2)

    @cached_property
    def table_widths(self) -> tuple[int, ...]:
        """Page table widths of an iteration: those of its decode rows and of its prompt tiles."""
        return (self.table_width,) if self.ragged_attention else _steps(self.table_width, 4, start=4)

    @cached_property
    def moved_pages(self) -> tuple[int, ...]:
        """Pages that move between device and host in one copy."""
        return _steps(self.table_width, 2)

    @staticmethod
    def fit(sizes: tuple[int, ...], count: int) -> int:
        """Return the smallest of the sizes that holds `count`."""
        return sizes[bisect_left(sizes, count)]


def padding_of(buckets: Buckets) -> Padding:
    """Return the batch sizes that a cost model should count with."""
    return Padding(
        rows=buckets.decode_rows,
        mixed_rows=buckets.mixed_rows,
        prompt_tokens=tuple(tiles * buckets.page_size for tiles in buckets.tiles),
        host_rows=buckets.host_rows,
    )


def _steps(largest: int, factor: int, start: int = 1) -> tuple[int, ...]:
    sizes = []
    size = start
    while size < largest:
        sizes.append(size)
        size *= factor
    return (*sizes, largest)
