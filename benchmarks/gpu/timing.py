"""How long things take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(call: Callable[[], Any], *, repeats: int = 5) -> float:
    """Return the median time of a call whose result is waited for, after one that is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def queued_seconds(call: Callable[[int], Any], *, calls: int) -> float:
    """Return the time of a call among several that are queued one behind the other; it gets its number.

    Compilations and first-time allocations come before, in a call that is not counted.
    """
    jax.block_until_ready(call(0))
    begin = time.perf_counter()
    result = None
    for number in range(calls):
        result = call(number)
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / calls
