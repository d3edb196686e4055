"""A lock whose waiting threads are served."""

from __future__ import annotations

import threading
from types import TracebackType


class FairLock:
    """A lock that a thread cannot take again before those that were waiting for it.

    A plain lock goes back to a thread that releases and takes it in a loop, as a thread that generates does, and the
    others wait until that loop has ended.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        with self._turn:
            self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
