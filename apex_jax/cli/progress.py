"""Says on a terminal what is going on; writes nothing into files and pipes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from ..machine.streams import is_terminal


class Progress:
    """Progress for a person who waits.

    Args:
        out: where it is written, if that is a terminal.

    Attributes:
        seconds: how long the last step took.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown = is_terminal(out)
        self.seconds = 0.0

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Announce something that takes seconds, and how long it took."""
        self._write(f"{what} ... ")
        start = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - start
        self._write(f"{self.seconds:.1f} s\n")

    def say(self, text: str) -> None:
        """Write a line."""
        self._write(f"{text}\n")

    @contextmanager
    def counting(self, total: int, unit: str) -> Iterator[Callable[..., object]]:
        """Show a bar; the function it gives advances it by one, or by the number it is told."""
        from ..progress_bar import Bar

        with Bar(total=total, unit=unit, file=self._out, disable=not self._shown) as bar:
            yield bar.update

    @contextmanager
    def through(self, steps: Sequence[str], unit: str) -> Iterator[Callable[[], object]]:
        """Show a bar with the name of the step under way; the function it gives goes on to the next."""
        from ..progress_bar import Bar

        names = iter((*steps, "done"))
        with Bar(desc=next(names), total=len(steps), unit=unit, file=self._out, disable=not self._shown) as bar:

            def advance() -> None:
                bar.set_description_str(next(names), refresh=False)
                bar.update()
                bar.refresh()

            yield advance

    def _write(self, text: str) -> None:
        if self._shown:
            self._out.write(text)
            self._out.flush()
