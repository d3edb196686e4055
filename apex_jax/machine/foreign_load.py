"""How busy a machine is with what this process does not do: what is timed beside others says little."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)
"""Places of the times in which a core had nothing to do, or waited for a disk."""


class ForeignLoad:
    """Begins to watch when it is made."""

    def __init__(self) -> None:
        self._busy = _busy_seconds()
        self._own = time.process_time()
        self._began = time.perf_counter()

    def share(self) -> float | None:
        """Return the share of all cores' time since then that other processes took; None where nothing tells it."""
        busy = _busy_seconds()
        if self._busy is None or busy is None:
            return None
        others = busy - self._busy - (time.process_time() - self._own)
        cores = os.cpu_count() or 1
        return min(1.0, max(0.0, others / cores / (time.perf_counter() - self._began)))


def _busy_seconds() -> float | None:
    if not _STAT.is_file():
        return None
    first = _STAT.read_text(encoding="utf-8").partition("\n")[0]
    # The last two are part of the first two.
    ticks = [int(number) for number in first.split()[1:9]]
    return sum(count for place, count in enumerate(ticks) if place not in _IDLE) / os.sysconf("SC_CLK_TCK")
