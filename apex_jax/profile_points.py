"""Where a profile is measured, and what is made of noisy times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .buckets import Buckets
from .scheduler import Curve

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class ProfileSizes:
    """What is measured, chosen to cover what an engine's batches and pages can hold.

    Attributes:
        rows: device rows of iterations that only decode.
        attention_rows, attention_lengths: rows whose contexts are lengthened, and to which lengths.
        prompts: prompt tokens.
        starts: tokens in front of the largest number of them.
        host_rows: rows of a cohort that are handed over.
        job_rows: rows of a cohort that attend.
        host_lengths: lengths of the contexts of the largest.
        moved_pages: pages of a request that moves.
    """

    rows: tuple[int, ...]
    attention_rows: int
    attention_lengths: tuple[int, ...]
    prompts: tuple[int, ...]
    starts: tuple[int, ...]
    host_rows: tuple[int, ...]
    job_rows: tuple[int, ...]
    host_lengths: tuple[int, ...]
    moved_pages: tuple[int, ...]

    @property
    def count(self) -> int:
        """Points in all, which `Profiler.on_point` is called after."""
        device = 2 * len(self.rows) + len(self.attention_lengths) + len(self.prompts) + len(self.starts) + 1
        return device + len(self.host_rows) + len(self.job_rows) + len(self.host_lengths) + 2 + len(self.moved_pages)

    @classmethod
    def of(cls, buckets: Buckets, *, num_pages: int, num_host_pages: int) -> ProfileSizes:
        """Return the sizes for an engine of such batches and pages."""
        page, longest = buckets.page_size, buckets.table_width
        attention_rows = max((count for count in buckets.decode_rows if 4 * count <= num_pages), default=1)
        host_rows = buckets.host_rows[:3]
        # One request's prompt must hold them.
        room = min(num_pages, longest)
        tiles = [tiles for tiles in buckets.tiles if tiles <= room]
        host_pages = min(num_host_pages // host_rows[-1], longest)
        return cls(
            rows=buckets.decode_rows,
            attention_rows=attention_rows,
            attention_lengths=tuple(page * n for n in _spread(min(num_pages // attention_rows, longest), 5)),
            prompts=tuple(page * n for n in tiles),
            starts=tuple(page * n for n in _spread(room - tiles[-1], 3)) if room > tiles[-1] else (),
            host_rows=host_rows,
            job_rows=tuple(sorted({1, *host_rows})),
            host_lengths=tuple(page * n for n in _spread(host_pages, 5)[1:]),
            moved_pages=tuple(n for n in buckets.moved_pages if n <= min(num_pages, num_host_pages))[:3],
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


def _spread(most: int, count: int) -> list[int]:
    """Return at most `count` whole numbers from 1 to `most`, in a geometric row."""
    return sorted({round(max(1, most) ** (step / (count - 1))) for step in range(count)})
