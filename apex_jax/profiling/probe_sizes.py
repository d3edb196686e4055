"""Where a profile is measured, and what is made of noisy times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..execution.batch import Buckets
from ..scheduler import Curve, prompt_pairs

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class ProfileSizes:
    """What is measured, chosen to cover what an engine's batches and pages can hold.

    Attributes:
        rows: device rows of iterations that only decode.
        head_rows: rows that sample, those of cohorts included.
        attention_rows, attention_lengths: rows whose contexts are lengthened, and to which lengths.
        prompts: prompt tokens.
        mixed_rows: device rows beside the most of these.
        chunk: those of them that are computed at other starts too, which tells their attention from their rows; 0 where
            one page is all that a prompt can have.
        starts: tokens in front of them, 0 left out.
        pairs: the most pairs of a prompt token and one that it attends to that an iteration can have.
        host_rows: rows of a cohort that are handed over.
        job_rows: rows of a cohort that attend.
        length_rows, host_lengths: rows whose contexts are lengthened on the host, and to which lengths beyond a page.
        moved_pages: pages of a request that moves.
    """

    rows: tuple[int, ...]
    head_rows: tuple[int, ...]
    attention_rows: int
    attention_lengths: tuple[int, ...]
    prompts: tuple[int, ...]
    mixed_rows: int
    chunk: int
    starts: tuple[int, ...]
    pairs: float
    host_rows: tuple[int, ...]
    job_rows: tuple[int, ...]
    length_rows: int
    host_lengths: tuple[int, ...]
    moved_pages: tuple[int, ...]

    @property
    def count(self) -> int:
        """Points in all, which `Profiler.on_point` is called after."""
        device = len(self.rows) + len(self.head_rows) + len(self.attention_lengths)
        prompts = len(self.prompts) + len(self.starts) + 1
        host = len(self.host_rows) + len(self.job_rows) + len(self.host_lengths) + 2
        return device + prompts + host + len(self.moved_pages)

    @classmethod
    def of(cls, buckets: Buckets) -> ProfileSizes:
        """Return the sizes for an engine of such batches and pages."""
        page, longest, window = buckets.page_size, buckets.table_width, buckets.capacity.sliding_window
        if window is not None:
            # Times are told over the tokens that are attended to, which are all of them up to there.
            longest = min(longest, max(1, window // page))
        num_pages, num_host_pages = buckets.capacity.device_pages, buckets.capacity.host_pages
        attention_rows = max((count for count in buckets.decode_rows if 4 * count <= num_pages), default=1)
        host_rows = _some(buckets.host_rows, 3)
        job_rows = tuple(sorted({1, *host_rows}))
        length_rows = max((count for count in job_rows if 4 * count <= num_host_pages), default=1)
        # One request's prompt must hold them.
        room = min(num_pages, longest)
        tiles = [tiles for tiles in buckets.tiles if tiles <= room]
        most = page * tiles[-1]
        # Starts as far away as the chunk is long, or the difference would drown in noise.
        chunk = max((count for count in tiles if 2 * count <= room), default=0)
        host_pages = min(num_host_pages // length_rows, longest)
        moved = tuple(count for count in buckets.moved_pages if count <= min(num_pages, num_host_pages))
        return cls(
            rows=buckets.decode_rows,
            head_rows=_some(buckets.samples, 8),
            attention_rows=attention_rows,
            attention_lengths=tuple(page * n for n in _spread(min(num_pages // attention_rows, longest), 5)),
            prompts=tuple(page * n for n in tiles),
            # The widest batch there can be, so that no prediction goes beyond what was measured.
            mixed_rows=max(1, min(buckets.mixed_rows[-1], num_pages) - 1),
            chunk=page * chunk,
            starts=tuple(page * n for n in _spread(room - chunk, 3)) if chunk else (),
            pairs=prompt_pairs(most, page * room - most),
            host_rows=host_rows,
            job_rows=job_rows,
            length_rows=length_rows,
            host_lengths=tuple(page * n for n in _spread(host_pages, 5)[1:]),
            moved_pages=_some(moved, 3),
        )


def beyond_first(points: Sequence[tuple[float, float]]) -> Curve:
    """Return the part of the times that grows with the count, from 0 on.

    What the first point holds of it is told by the slope over all points.
    """
    (first, least), (last, most) = points[0], points[-1]
    slope = max(0.0, (most - least) / (last - first)) if last > first else 0.0
    return Curve.fit([(0, 0.0), *positive((count, seconds - least + slope * first) for count, seconds in points)])


def positive(points: Iterable[tuple[float, float]]) -> Points:
    """Return differences of noisy times as times: none is below a nanosecond."""
    return [(count, max(1e-9, seconds)) for count, seconds in points]


def _some(sizes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return at most `count` of the sizes, evenly spread, the first and the last among them."""
    if len(sizes) <= count:
        return sizes
    return tuple(sizes[round(step * (len(sizes) - 1) / (count - 1))] for step in range(count))


def _spread(most: int, count: int) -> list[int]:
    """Return at most `count` whole numbers from 1 to `most`, in a geometric row."""
    return sorted({round(max(1, most) ** (step / (count - 1))) for step in range(count)})
