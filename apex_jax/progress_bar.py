"""Progress for a person who waits: a bar on a terminal or in a notebook, its last line alone in a file or pipe."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import jax
from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm

from .machine.streams import is_terminal

COMPILATION = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that XLA has compiled."""


class Bar(tqdm):
    """A tqdm bar without its monitor thread, which would outlive it, and without redrawing where nothing is erased.

    Args:
        file: where it is written; standard error if None.
        options: those of tqdm.
    """

    monitor_interval = 0

    def __init__(self, *, file: TextIO | None = None, **options: Any) -> None:
        # tqdm's class for terminals is the one that `tqdm.auto` gives outside of notebooks.
        drawn_as_text = tqdm is tqdm_asyncio
        if file is None and sys.stderr is None:
            # A program without a console.
            options["disable"] = True
        last_line_only = drawn_as_text and not is_terminal(file or sys.stderr)
        if last_line_only:
            options |= {"mininterval": math.inf, "delay": math.inf}
        super().__init__(file=file, **options)
        if last_line_only:
            self.delay = 0


@contextmanager
def each_compilation(report: Callable[[], object]) -> Iterator[None]:
    """Call `report` after each program that is compiled within."""

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILATION:
            report()

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
