"""Ctrl-C that is not lost in the garbage collector.

Python raises KeyboardInterrupt wherever the main thread happens to be. Within a callback of the garbage collector, and
JAX registers one, the exception is printed and forgotten: while JAX and transformers are imported that meets one Ctrl-C
in seven. It is put off until the callback has returned.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RETRY_SECONDS = 0.001


@contextmanager
def kept() -> Iterator[None]:
    """Let every Ctrl-C within raise KeyboardInterrupt; to be used in the main thread."""
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    if _in_collector_callback(frame):
        # raise_signal would call this handler again at once, from within itself.
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
    else:
        raise KeyboardInterrupt


def _in_collector_callback(frame: FrameType | None) -> bool:
    codes = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False
