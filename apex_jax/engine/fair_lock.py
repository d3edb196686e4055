"""A lock whose waiting threads are served."""

from __future__ import annotations

import threading
from types import TracebackType


class FairLock:
    """A lock that a thread does not get again before those that were waiting for it.

    A plain lock goes back to a thread that releases and takes it in a loop, as a thread that generates does; others
    then wait for dozens of iterations. Re-entrant, so that an interrupt that falls between taking the lock and the
    body of the `with` (well under a microsecond) cannot shut out the thread that it came to.
    """

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        taken = False
        try:
            with self._turn:
                taken = self._lock.acquire()
        except BaseException:
            if taken:
                self._lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
