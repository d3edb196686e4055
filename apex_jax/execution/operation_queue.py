"""Operations that are only waited for: when they begin and end, and how to wait until then."""

from __future__ import annotations

import time

SPIN_NS = 150_000
"""The last part of a wait: a sleep ends some 90 us late, which is as much as a handover between threads takes."""


class OperationQueue:
    """Operations one after the other, in wall-clock time that nobody spends on them.

    Attributes:
        free_ns: when the last one ends (`time.perf_counter_ns`).
        busy_ns: how long all of them take together.
    """

    def __init__(self) -> None:
        self.free_ns = 0
        self.busy_ns = 0

    def run(self, seconds: float, after_ns: int = 0) -> tuple[int, int]:
        """Append an operation that is dispatched now and whose inputs are there at `after_ns`; returns when it begins
        and ends."""
        begin = max(time.perf_counter_ns(), self.free_ns, after_ns)
        spent = round(seconds * 1e9)
        self.free_ns = begin + spent
        self.busy_ns += spent
        return begin, self.free_ns


def wait_until(at_ns: int, *, spin_ns: int = SPIN_NS) -> None:
    """Return at a moment, or at once if it has passed. Other threads of this process run meanwhile."""
    left = at_ns - time.perf_counter_ns()
    if left > spin_ns:
        time.sleep((left - spin_ns) / 1e9)
    while time.perf_counter_ns() < at_ns:
        # Gives the interpreter away and takes it back.
        time.sleep(0)
