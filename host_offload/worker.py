"""The host's jobs, one after the other: attention of parked rows, pages that arrive, pages that leave.

Order is what makes this safe without locks on pages: a page freed by one request and given to another is read and
written by jobs in the order in which they were submitted. Jobs run on a thread of their own, or on the thread that
waits for one of them, whichever comes to it first; a caller that will wait at once need not wake the other thread.
Where no thread can be started, everything runs on the caller's: nothing overlaps then, and that is all.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .attention import decode_attention_packed
from .cache import HostKVCache, read_pages, write_pages

_logger = logging.getLogger(__name__)

Kind = Literal["attend", "store", "load"]

FromDevice = Callable[[], np.ndarray]
"""Waits for the device to have computed something, and returns a copy of it in host memory."""

IDLE_SECONDS = 0.2
"""How long the thread stays for another job, whoever may have forgotten it."""

ToDevice = Callable[[np.ndarray], Any]
"""Starts sending an array to the device; returns what stands for it there."""


@dataclass(frozen=True)
class HostPrograms:
    """Jitted programs over one layer's pages; each compiles once for every shape of its other arguments."""

    attend: Callable[..., tuple[jax.Array, jax.Array]]
    write: Callable[..., jax.Array]
    read: Callable[..., jax.Array]


def build_programs(sliding_window: int | None = None) -> HostPrograms:
    """Return the programs.

    Args:
        sliding_window: see `decode_attention`.
    """

    def attend(kv: jax.Array, qkv: jax.Array, table: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, _, kv = decode_attention_packed(qkv, kv, table, lengths, sliding_window=sliding_window)
        return out.astype(qkv.dtype), kv

    return HostPrograms(
        attend=jax.jit(attend, donate_argnums=0),
        write=jax.jit(write_pages, donate_argnums=0),
        read=jax.jit(read_pages),
    )


@dataclass(eq=False, kw_only=True)
class HostJob:
    """A job submitted to a `HostWorker`; times are readings of `time.perf_counter_ns`, 0 before they have come.

    Attributes:
        kind: "attend", "store" (pages from the device), or "load" (pages to the device).
        layer: whose pages.
        rows: rows that attend, or pages that move, padding included.
        tag: the caller's own mark.
        begun_ns: the job was taken up and began to wait for its input from the device.
        fetched_ns: its input was there.
        computed_ns: the host had done its part.
        ended_ns: its result was on its way to the device.
        error: what went wrong, if anything did.
        result: what stands for its result on the device, if it has one.
    """

    kind: Kind
    layer: int
    rows: int
    tag: Any = None
    begun_ns: int = 0
    fetched_ns: int = 0
    computed_ns: int = 0
    ended_ns: int = 0
    error: Exception | None = None
    result: Any = None
    _work: Callable[[HostJob], Any] | None = None
    _news: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)

    @property
    def ended(self) -> bool:
        return self.ended_ns != 0

    def run(self) -> None:
        """Do the work and keep its error; what is no `Exception`, such as an interrupt, is raised as well."""
        assert self._work is not None
        self.error, self.begun_ns = None, time.perf_counter_ns()
        try:
            self.result = self._work(self)
        except Exception as error:
            self.error = error
        except BaseException as error:
            self.error = _of_another_thread(error)
            raise
        finally:
            self.ended_ns = time.perf_counter_ns()
            self._work = None


Contexts = Callable[[], AbstractContextManager[None]]


class HostWorker:
    """Owns the host's KV pages and runs jobs over them in the order of submission.

    Args:
        cache: the pages; the worker takes their arrays over.
        num_heads: query heads N.
        sliding_window: see `decode_attention`.
        contexts: of JAX, which are each thread's own, for its thread.

    Attributes:
        layers: each layer's pages, replaced by every job that changes them.
        num_pages: pages that a page id can name.
        programs: what jobs run.
        thread: the one that runs jobs, where there is one.
        losses: how often a layer's pages were lost to a job that failed half-way; they are zero afterwards.
        lost_to: what went wrong the last time.
        observers: called after each job, in their order, in the thread that ran it, before the next begins.
    """

    def __init__(
        self,
        cache: HostKVCache,
        *,
        num_heads: int,
        sliding_window: int | None = None,
        contexts: Contexts = nullcontext,
    ) -> None:
        self.layers = list(cache.layers)
        self._page = cache.layers[0].shape[1:]
        self.num_pages = cache.num_pages
        self._num_heads = num_heads
        self._contexts = contexts
        self.programs = build_programs(sliding_window)
        self.observers: list[Callable[[HostJob], None]] = []
        self._queue: deque[HostJob] = deque()
        self._turn = threading.Lock()
        # Not a semaphore nor an event: those hold locks in Python code, where an exception from outside may leave them.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._coming_and_going = threading.Lock()
        self.thread: threading.Thread | None = None
        self._stopping = False
        self._thread_runs = False
        self._has_no_thread = False
        self.losses = 0
        self.lost_to: Exception | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no job is queued or under way, and no thread waits for one."""
        return not self._queue and (self.thread is None or not self.thread.is_alive())

    def attend(
        self,
        layer: int,
        qkv: FromDevice,
        table: np.ndarray,
        lengths: np.ndarray,
        deliver: ToDevice,
        *,
        tag: Any = None,
        wake: bool = True,
    ) -> HostJob:
        """Append the rows' keys and values to a layer and attend.

        Args:
            layer: 0 to L - 1.
            qkv: gives [n, N + 2K, H]: queries, keys and values of one token a row.
            table: page ids, int32 [n, W].
            lengths: int32 [n], the token itself included; 0 marks a row that takes no part.
            deliver: takes the attention [n, N, H] in the type of `qkv`; what it returns is the job's result.
            tag: the caller's own mark.
            wake: False where the caller is about to wait for this job.
        """

        def work(job: HostJob) -> Any:
            packed = qkv()
            job.fetched_ns = time.perf_counter_ns()
            out = np.asarray(self._change(layer, lambda kv: self.programs.attend(kv, packed, table, lengths)))
            job.computed_ns = time.perf_counter_ns()
            return deliver(out)

        return self._submit(HostJob(kind="attend", layer=layer, rows=len(lengths), tag=tag, _work=work), wake)

    def store(self, layer: int, tiles: FromDevice, pages: np.ndarray, *, tag: Any = None) -> HostJob:
        """Write whole pages that come from the device; `pages` int32 [M], negative for padding tiles."""

        def work(job: HostJob) -> None:
            arrived = tiles()
            job.fetched_ns = time.perf_counter_ns()
            self._change(layer, lambda kv: (None, self.programs.write(kv, pages, arrived)))
            job.computed_ns = time.perf_counter_ns()

        return self._submit(HostJob(kind="store", layer=layer, rows=len(pages), tag=tag, _work=work), wake=True)

    def load(self, layer: int, pages: np.ndarray, deliver: ToDevice, *, tag: Any = None) -> HostJob:
        """Send whole pages to the device: `deliver` gets [M, K, 2, S, H] for `pages` int32 [M]; negative ids give
        zeros."""

        def work(job: HostJob) -> Any:
            job.fetched_ns = time.perf_counter_ns()
            tiles = np.asarray(self.programs.read(self._pages(layer), pages))
            job.computed_ns = time.perf_counter_ns()
            return deliver(tiles)

        return self._submit(HostJob(kind="load", layer=layer, rows=len(pages), tag=tag, _work=work), wake=True)

    def wait(self, job: HostJob) -> Any:
        """Return a job's result, once it has ended as `join` waits for it.

        Raises:
            Exception: what went wrong in the job.
        """
        self.join(job)
        if job.error is not None:
            raise job.error
        return job.result

    def join(self, job: HostJob) -> None:
        """Wait until a job has ended, well or not; the caller's thread runs what stands before it and is not begun."""
        while not job.ended:
            if self._thread_runs:
                # Not for its turn to end: who gives a lock back and takes it again is faster than who waits for it.
                self._call_thread()
                job._news.get()
                job._news.put(None)
                continue
            with self._turn:
                if not job.ended and not self._run_next():
                    raise RuntimeError("a host job was waited for that was never submitted, or was discarded")

    def catch_up(self) -> None:
        """Run what is queued, if the last attempt to start a thread for it failed; otherwise the thread comes to it.

        For callers that look whether jobs have ended, without waiting for any.
        """
        while self._has_no_thread and self._queue:
            with self._turn:
                self._run_next()

    def warm_up(self, *, rows: Sequence[int], width: int, pages: Sequence[int]) -> None:
        """Compile all programs, for rows of the pages' type, by running each on padding; changes no page.

        Args:
            rows: numbers of rows that attend.
            width: W of their page tables.
            pages: numbers of pages that move.
        """
        with self._turn:
            for count in rows:
                self._attend_to_nothing(count, width)
            for count in pages:
                self._move_nothing(np.full(count, -1, np.int32))

    def stop(self) -> None:
        """Run what is queued and end the thread; a later job starts another."""
        thread = self.thread
        # An interrupt may have come before the thread was started.
        if thread is not None and thread.is_alive():
            try:
                self._stopping = True
                self._wake.put(None)
                thread.join()
            finally:
                self._stopping = False
        while self._queue:
            with self._turn:
                self._run_next()

    def discard(self) -> None:
        """Drop what is queued, wait for the job under way, end the thread, and replace pages lost to an interrupt."""
        self._queue.clear()
        self.stop()
        for layer in range(len(self.layers)):
            self._replace_lost(layer, None)

    def _submit(self, job: HostJob, wake: bool) -> HostJob:
        with self._coming_and_going:
            self._queue.append(job)
        if wake:
            self._call_thread()
        return job

    def _call_thread(self) -> None:
        with self._coming_and_going:
            if self.thread is None or not self.thread.is_alive():
                self._start_thread()
        self._wake.put(None)

    def _start_thread(self) -> None:
        self.thread = threading.Thread(target=self._serve, name="apex-jax-host", daemon=True)
        try:
            self.thread.start()
        except (RuntimeError, MemoryError) as error:
            # What the system says that has no room for one more.
            self.thread = None
            if not self._has_no_thread:
                _logger.warning("No thread can be started for the host's jobs; the caller's runs them: %r", error)
            self._has_no_thread = True
        else:
            self._has_no_thread = False

    def _serve(self) -> None:
        try:
            with self._contexts():
                while self._serve_next():
                    pass
        except BaseException:
            self._thread_runs = False
            # Nobody is left whom those could wait for that count on this thread.
            for job in tuple(self._queue):
                job._news.put(None)
            raise

    def _serve_next(self) -> bool:
        """Run a job on this thread; False where there is none left to stay for."""
        try:
            self._wake.get(timeout=IDLE_SECONDS)
            woken = True
        except queue.Empty:
            woken = False
        # Said before the turn is taken: until this thread has the interpreter again, others would wait for its turn to
        # end, and it may take several in a row.
        self._thread_runs = True
        with self._turn:
            self._run_next()
        self._thread_runs = False
        with self._coming_and_going:
            if self._queue or (woken and not self._stopping):
                return True
            self.thread = None
            return False

    def _run_next(self) -> bool:
        """Run the first job of the queue, if there is one; it leaves the queue when it has ended.

        A job at which an exception from outside struck before it ended is run again.
        """
        try:
            job = self._queue[0]
        except IndexError:
            return False
        try:
            if not job.ended:
                job.run()
                for observer in tuple(self.observers):
                    observer(job)
        finally:
            if job.ended and self._queue and self._queue[0] is job:
                self._queue.popleft()
            job._news.put(None)
        return True

    def _attend_to_nothing(self, rows: int, width: int) -> None:
        kv_heads, _, _, head_width = self._page
        packed = np.zeros((rows, self._num_heads + 2 * kv_heads, head_width), self.layers[0].dtype)
        table, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
        self._change(0, lambda kv: self.programs.attend(kv, packed, table, lengths))

    def _move_nothing(self, pages: np.ndarray) -> None:
        tiles = np.asarray(self.programs.read(self.layers[0], pages))
        self._change(0, lambda kv: (None, self.programs.write(kv, pages, tiles)))

    def _change(self, layer: int, change: Callable[[jax.Array], tuple[Any, jax.Array]]) -> Any:
        try:
            # Errors of a compiled call may come late; they must not be stored with its result.
            result, self.layers[layer] = jax.block_until_ready(change(self._pages(layer)))
        except BaseException as error:
            self._replace_lost(layer, error)
            raise
        return result

    def _pages(self, layer: int) -> jax.Array:
        if self.layers[layer].is_deleted():
            self._replace_lost(layer, RuntimeError("a thread ended in a host job before it had kept the pages"))
        return self.layers[layer]

    def _replace_lost(self, layer: int, error: BaseException | None) -> None:
        lost = self.layers[layer]
        if lost.is_deleted():
            self.lost_to = error if error is None or isinstance(error, Exception) else _of_another_thread(error)
            self.losses += 1
            self.layers[layer] = jnp.zeros(lost.shape, lost.dtype, device=lost.sharding)


def _of_another_thread(error: BaseException) -> Exception:
    """Return what to tell those of an error who must not take it for one of their own thread."""
    told = RuntimeError(f"a thread ended in a host job: {error!r}")
    told.__cause__ = error
    return told
