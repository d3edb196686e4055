"""How long things take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(
    call: Callable[[Any], Any], *, repeats: int = 5, prepare: Callable[[], Any] = lambda: None
) -> tuple[float, float]:
    """Return the median times until a call of what `prepare` gives returns, and until its result is there.

    Each is waited for; the first is not counted.
    """
    returned, done = [], []
    for _ in range(repeats + 1):
        given = prepare()
        begin = time.perf_counter()
        result = call(given)
        returned.append(time.perf_counter() - begin)
        jax.block_until_ready(result)
        done.append(time.perf_counter() - begin)
    return statistics.median(returned[1:]), statistics.median(done[1:])


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
