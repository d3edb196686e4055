"""Ctrl-C that neither gets lost nor breaks anything.

Python raises KeyboardInterrupt wherever the main thread happens to be. In two places that goes wrong, and both are met
often in the seconds in which JAX and transformers start: in a callback of the garbage collector, of which JAX has one,
a finalizer or a weak reference's callback the exception is printed and forgotten; in an import it can end jaxlib's
initialisation with a crash or as an ImportError. There it is put off until they are over.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RETRY_SECONDS = 0.01


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
    if _must_not_raise(frame):
        # raise_signal would call this handler again at once, from within itself.
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
    else:
        raise KeyboardInterrupt


def _must_not_raise(frame: FrameType | None) -> bool:
    collector_callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        code = frame.f_code
        if code in collector_callbacks or code.co_filename.startswith("<frozen importlib"):
            return True
        if code.co_name == "__del__" or frame.f_globals.get("__name__") in ("weakref", "_weakrefset"):
            return True
        frame = frame.f_back
    return False
