"""The shapes of batches, and how plans become the integer matrices that device programs and host jobs take: page tables
and padding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..scheduler import Capacity, Cohort, DecodeRow, NewPages, Padding, Plan, PrefillChunk
from .programs import ROW_COLUMNS, TILE_COLUMNS

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


class PageTables:
    """The page ids of every slot on one side, as a matrix int32 [slots + 1, W]."""

    def __init__(self, buckets: Buckets) -> None:
        self.rows = np.zeros((buckets.slots + 1, buckets.table_width), np.int32)

    def apply(self, changes: Sequence[NewPages]) -> None:
        """Write down the pages that slots have received."""
        for change in changes:
            self.rows[change.slot, change.first : change.first + len(change.pages)] = change.pages

    def replace(self, slot: int, pages: Sequence[int], *, first: int) -> None:
        """Give a slot other pages from an entry on; nobody reads those in front of it."""
        self.rows[slot, first : first + len(pages)] = pages


def table_width(decode: Sequence[DecodeRow], chunks: Sequence[PrefillChunk], buckets: Buckets) -> int:
    """Return the width W of page tables that hold the contexts of all rows and chunks of an iteration."""
    lengths = [row.length for row in decode] + [chunk.start + len(chunk.tokens) for chunk in chunks]
    return buckets.fit(buckets.table_widths, -(-max(lengths, default=1) // buckets.page_size))


def pack_rows(
    decode: Sequence[DecodeRow], tables: PageTables, buckets: Buckets, *, sizes: tuple[int, ...], width: int
) -> np.ndarray:
    """Return device rows as int32 [B, 2 + W], padded to one of the sizes."""
    count = buckets.fit(sizes, len(decode))
    packed = padding_rows(count, width, buckets)
    if decode:
        slots = [row.slot for row in decode]
        packed[: len(decode), 0] = slots
        packed[: len(decode), 1] = [row.length for row in decode]
        packed[: len(decode), ROW_COLUMNS:] = tables.rows[slots, :width]
    return packed


def pack_cohort(cohort: Cohort, buckets: Buckets) -> np.ndarray:
    """Return a cohort's rows as int32 [n, 2] of slots and lengths, padded to a bucket; gaps are padding too."""
    packed = padding_rows(buckets.fit(buckets.host_rows, len(cohort.rows)), 0, buckets)
    for place, row in enumerate(cohort.rows):
        if row is not None:
            packed[place] = row.slot, row.length
    return packed


def cohort_lengths(cohort: Cohort, buckets: Buckets) -> np.ndarray:
    """Return the lengths of a cohort's rows, int32 [n], padded to a bucket; 0 for gaps and padding."""
    lengths = np.zeros(buckets.fit(buckets.host_rows, len(cohort.rows)), np.int32)
    lengths[: len(cohort.rows)] = [0 if row is None else row.length for row in cohort.rows]
    return lengths


def pack_tiles(chunks: Sequence[PrefillChunk], tables: PageTables, buckets: Buckets, *, width: int) -> np.ndarray:
    """Return the prompt tiles, int32 [M, 2 + S + W], padded to a bucket."""
    size = buckets.page_size
    tiles = [-(-len(chunk.tokens) // size) for chunk in chunks]
    packed = padding_tiles(buckets.fit(buckets.tiles, sum(tiles)), width, buckets)
    tile = 0
    for chunk, count in zip(chunks, tiles, strict=True):
        block = packed[tile : tile + count]
        first_page = chunk.start // size
        block[:, 0] = chunk.start + np.arange(count) * size
        block[:, 1] = tables.rows[chunk.slot, first_page : first_page + count]
        tokens = np.zeros(count * size, np.int32)
        tokens[: len(chunk.tokens)] = chunk.tokens
        block[:, TILE_COLUMNS : TILE_COLUMNS + size] = tokens.reshape(count, size)
        block[:, TILE_COLUMNS + size :] = tables.rows[chunk.slot, :width]
        tile += count
    return packed


def pack_samples(
    plan: Plan, buckets: Buckets, *, tiles: int, device_rows: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Say which tokens are sampled after.

    Args:
        plan: what has run.
        buckets: batch shapes.
        tiles: tiles in front of the device rows, padding included.
        device_rows: device rows, padding included.

    Returns:
        For the device's batch and for each arriving cohort, the row of the sample batch that each of its rows becomes,
        int32 [T] and [n] (R where it is not sampled after), and the sample batch, int32 [R, 2], padded to a bucket.
    """
    size, tile = buckets.page_size, 0
    places = [np.full(tiles * size + device_rows, -1, np.int32)]
    samples: list[tuple[int, int]] = []
    for chunk in plan.prefill:
        if chunk.samples:
            places[0][tile * size + len(chunk.tokens) - 1] = len(samples)
            samples.append((chunk.slot, chunk.step))
        tile += -(-len(chunk.tokens) // size)
    places[0][tiles * size : tiles * size + len(plan.decode)] = np.arange(len(samples), len(samples) + len(plan.decode))
    samples += [(item.slot, item.step) for item in plan.decode]
    for cohort in plan.arriving:
        places.append(np.full(buckets.fit(buckets.host_rows, len(cohort.rows)), -1, np.int32))
        for row, item in enumerate(cohort.rows):
            if item is not None:
                places[-1][row] = len(samples)
                samples.append((item.slot, item.step))
    count = buckets.fit(buckets.samples, len(samples))
    batch = padding_samples(count, buckets)
    if samples:
        batch[: len(samples)] = samples
    return tuple(np.where(place < 0, count, place).astype(np.int32) for place in places), batch


def padding_rows(count: int, width: int, buckets: Buckets) -> np.ndarray:
    """Return rows that write nothing: int32 [count, 2 + width]."""
    packed = np.zeros((count, ROW_COLUMNS + width), np.int32)
    packed[:, 0] = buckets.slots
    return packed


def padding_tiles(count: int, width: int, buckets: Buckets) -> np.ndarray:
    """Return tiles that write nothing: int32 [count, 2 + S + width]."""
    packed = np.zeros((count, TILE_COLUMNS + buckets.page_size + width), np.int32)
    packed[:, 1] = buckets.capacity.device_pages
    return packed


def padding_samples(count: int, buckets: Buckets) -> np.ndarray:
    """Return samples that go nowhere: int32 [count, 2]."""
    packed = np.zeros((count, 2), np.int32)
    packed[:, 0] = buckets.slots
    return packed


def padded_pages(pages: Sequence[int], buckets: Buckets, *, padding: int) -> np.ndarray:
    """Return page ids, int32, padded to a bucket of moved pages."""
    packed = np.full(buckets.fit(buckets.moved_pages, len(pages)), padding, np.int32)
    packed[: len(pages)] = pages
    return packed
