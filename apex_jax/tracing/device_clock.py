"""When a JAX device ran what: a thread that waits for each dispatched program in turn, for traces."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from .recorder import ITERATION, Recorder

_logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.2
"""How long the thread stays for another program."""


@dataclass(frozen=True, kw_only=True)
class _Dispatched:
    name: str
    result: jax.Array
    at_ns: int
    ends_iteration: Mapping[str, Any] | None = None
    args: Mapping[str, Any] = field(default_factory=dict)


class DeviceClock:
    """Records spans of device work: a program begins when it was dispatched or the one before it had ended.

    JAX tells when a result is ready and no more, so a span ends when this thread has noticed; with programs of tens of
    microseconds that is coarse. It costs a thread that wakes for every program: for looking, not for measuring.

    Args:
        recorder: takes the spans, on the track "device".
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._dispatched: queue.SimpleQueue[_Dispatched] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._has_no_thread = False
        self._last_end = 0
        self._left = 0
        self._iteration_begin: int | None = None

    def note(
        self, name: str, result: jax.Array, at_ns: int, *, ends_iteration: Mapping[str, Any] | None = None, **args: Any
    ) -> None:
        """Note a program that has just been dispatched.

        Args:
            name: what it does.
            result: an array it gives, which no later program may consume.
            at_ns: when its dispatch began.
            ends_iteration: for an iteration's last program, what to say of the iteration.
            args: what to say of the program.
        """
        with self._lock:
            self._left += 1
            self._dispatched.put(
                _Dispatched(name=name, result=result, at_ns=at_ns, ends_iteration=ends_iteration, args=args)
            )
            if self._thread is None and not self._has_no_thread:
                self._start_thread()
        if self._has_no_thread:
            self._record(self._dispatched.get())

    def last_end(self) -> int | None:
        """Return when the last program was seen to have ended; None if one has not been."""
        with self._lock:
            return self._last_end if self._left == 0 and self._last_end else None

    def finish(self) -> None:
        """Wait until all that was noted has been recorded."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._follow, name="apex-jax-device-clock", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            _logger.warning("No thread can be started for the trace; dispatch waits for each program: %r", error)
            self._has_no_thread = True
        else:
            self._thread = thread

    def _follow(self) -> None:
        while True:
            try:
                self._record(self._dispatched.get(timeout=IDLE_SECONDS))
            except queue.Empty:
                with self._lock:
                    if self._dispatched.empty():
                        self._thread = None
                        return

    def _record(self, program: _Dispatched) -> None:
        program.result.block_until_ready()
        end = time.perf_counter_ns()
        begin = min(max(program.at_ns, self._last_end), end)
        self._recorder.span("device", program.name, begin, end, **program.args)
        if self._iteration_begin is None:
            self._iteration_begin = begin
        if program.ends_iteration is not None:
            self._recorder.span("device", ITERATION, self._iteration_begin, end, **program.ends_iteration)
            self._iteration_begin = None
        with self._lock:
            self._last_end = end
            self._left -= 1
