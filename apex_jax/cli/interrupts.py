"""Ctrl-C that neither gets lost nor breaks anything.

Python raises KeyboardInterrupt wherever the main thread happens to be. In two places that goes wrong, and both are met
often in the seconds in which JAX and transformers start: in a callback of the garbage collector, of which JAX has one,
a finalizer or a weak reference's callback the exception is printed and forgotten; in an import it can end jaxlib's
initialisation with a crash or as an ImportError. There it is put off until they are over.

Where the main thread is in C++ for long, as when XLA compiles, Python does not get to raise anything:
`ended_if_ignored` ends the process.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from types import FrameType

RETRY_SECONDS = 0.01
PATIENCE_SECONDS = 1.2
"""How long Python may take to raise KeyboardInterrupt before the process is ended."""


@contextmanager
def kept(raised: Callable[[], object]) -> Iterator[None]:
    """Let every Ctrl-C within call `raised` and raise KeyboardInterrupt; to be used in the main thread."""

    def handle(number: int, frame: FrameType | None) -> None:
        if _must_not_raise(frame):
            # raise_signal would call this handler again at once, from within itself.
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        else:
            raised()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_if_ignored(raised: Event, *, status: int, message: str) -> Iterator[None]:
    """End the whole process if within a Ctrl-C `raised` is not set soon after it; to be used in the main thread.

    What other threads and callers would do at its end is not done; files that are being written are left beside their
    places, as by a kill.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)

    def watch() -> None:
        while numbers := os.read(heard, 64):
            if signal.SIGINT in numbers:
                if not raised.wait(PATIENCE_SECONDS):
                    with suppress(OSError, ValueError):
                        sys.stdout.flush()
                    os.write(sys.stderr.fileno(), message.encode())
                    os._exit(status)
                raised.clear()

    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(told)
        watcher.join()
        os.close(heard)


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
