"""Brings plans into the integer matrices that device programs and host jobs take: page tables and padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..scheduler import Cohort, DecodeRow, NewPages, Plan, PrefillChunk
from .buckets import Buckets
from .programs import ROW_COLUMNS, TILE_COLUMNS


class PageTables:
    """The page ids of every slot on one side, as a matrix int32 [slots + 1, W]."""

    def __init__(self, buckets: Buckets) -> None:
        self.rows = np.zeros((buckets.slots + 1, buckets.table_width), np.int32)

    def apply(self, changes: Sequence[NewPages]) -> None:
        """Write down the pages that slots have received."""
        for change in changes:
            self.rows[change.slot, change.first : change.first + len(change.pages)] = change.pages

    def replace(self, slot: int, pages: Sequence[int]) -> None:
        """Give a slot other pages from its first entry on."""
        self.rows[slot, : len(pages)] = pages


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
