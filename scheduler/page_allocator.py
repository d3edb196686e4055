"""Accounting of KV pages: which page ids are free and which request owns them. Deals in ids only, never in arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class OutOfPages(Exception):
    """Raised when more pages are asked for than are free; nothing has been allocated then."""


class PageAllocator:
    """Hands out the ids `0..num_pages-1` of one pool of KV pages, in runs of consecutive ids where it can.

    Runs matter because a memory that is read in order is read faster, and because a run moves between device and host
    in one copy. A growing owner is continued where its last page ended if that id is free; otherwise a new run starts
    in the middle of the largest free run, so that both neighbours have room to grow.

    Args:
        num_pages: pages in the pool, which may have none.
        page_size: tokens a page holds, at least 1.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 0:
            raise ValueError(f"num_pages is {num_pages}; a pool has 0 pages or more")
        if page_size < 1:
            raise ValueError(f"page_size is {page_size}; a page holds at least 1 token")
        self.num_pages = num_pages
        self.page_size = page_size
        # Of each free run, its length by its first id, and that by the id behind its last.
        self._runs: dict[int, int] = {0: num_pages} if num_pages else {}
        self._starts: dict[int, int] = {num_pages: 0} if num_pages else {}
        self._free = num_pages

    @property
    def num_free(self) -> int:
        """Pages nobody owns."""
        return self._free

    def pages_for(self, tokens: int) -> int:
        """Return how many pages hold that many tokens."""
        return -(-tokens // self.page_size)

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` pages.

        Args:
            count: pages wanted, 0 or more.
            after: last page of the owner, which the new pages should follow if possible.

        Raises:
            OutOfPages: fewer than `count` pages are free.
        """
        if count > self._free:
            raise OutOfPages(f"{count} pages wanted, {self._free} of {self.num_pages} are free")
        taken: list[int] = []
        if count and after is not None and after + 1 in self._runs:
            taken += self._take(after + 1, after + 1, count)
        while len(taken) < count:
            wanted = count - len(taken)
            start, length = max(self._runs.items(), key=lambda run: run[1])
            first = start + length // 2 if start > 0 and length >= 2 * wanted else start
            taken += self._take(start, first, wanted)
        return taken

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back.

        Raises:
            ValueError: an id is outside the pool or already free.
        """
        for first, length in _consecutive(sorted(pages)):
            if first < 0 or first + length > self.num_pages:
                raise ValueError(f"pages {first}..{first + length - 1} are not all in 0..{self.num_pages - 1}")
            self._release(first, length)

    def free_ids(self) -> list[int]:
        """Return all free ids in order."""
        return [page for start in sorted(self._runs) for page in range(start, start + self._runs[start])]

    def _take(self, start: int, first: int, count: int) -> Sequence[int]:
        length = self._runs.pop(start)
        del self._starts[start + length]
        count = min(count, start + length - first)
        self._put(start, first - start)
        self._put(first + count, start + length - first - count)
        self._free -= count
        return range(first, first + count)

    def _put(self, start: int, length: int) -> None:
        if length > 0:
            self._runs[start] = length
            self._starts[start + length] = start

    def _release(self, first: int, length: int) -> None:
        end = first + length
        for start, run in self._runs.items():
            if start < end and first < start + run:
                raise ValueError(f"page {max(start, first)} is freed twice")
        self._free += length
        if first in self._starts:
            start = self._starts.pop(first)
            length += self._runs.pop(start)
            first = start
        if end in self._runs:
            run = self._runs.pop(end)
            del self._starts[end + run]
            length += run
        self._put(first, length)


def _consecutive(ids: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Yield (first, length) of each run of consecutive numbers; a repeated number ends a run and starts another."""
    begin = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or ids[i] != ids[i - 1] + 1:
            yield ids[begin], i - begin
            begin = i
