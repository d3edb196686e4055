"""Completions as text, in order, although all of them come at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from ..outputs import RequestOutput
from .inputs import Task

_LABEL_WIDTH = 60


class Printer:
    """Writes completions one after the other: the first unfinished one as it comes, the others when it is their turn.

    With more than one completion each gets a heading.

    Args:
        tasks: what was asked for, in order.
        out: where the text goes.
    """

    def __init__(self, tasks: Sequence[Task], out: TextIO) -> None:
        self._order = [(position, index) for position, task in enumerate(tasks) for index in range(task.params.n)]
        self._headings = _headings(tasks) if len(self._order) > 1 else [""]
        self._texts: dict[tuple[int, int], list[str]] = {key: [] for key in self._order}
        self._finished: set[tuple[int, int]] = set()
        self._current = 0
        self._ends_line = True
        self._out = out
        self._write(self._headings[0])

    def add(self, position: int, output: RequestOutput) -> None:
        """Take in new text of one request, `position` among the tasks, and write what can be written."""
        for completion in output.outputs:
            key = (position, completion.index)
            self._texts[key].append(completion.text)
            if completion.finished:
                self._finished.add(key)
        while self._current < len(self._order):
            key = self._order[self._current]
            self._write("".join(self._texts[key]))
            self._texts[key].clear()
            if key not in self._finished:
                break
            self._write("" if self._ends_line else "\n")
            self._current += 1
            if self._current < len(self._order):
                self._write(self._headings[self._current])
        self._out.flush()

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._ends_line = text.endswith("\n")


def _headings(tasks: Sequence[Task]) -> list[str]:
    headings = []
    for number, task in enumerate(tasks, start=1):
        for completion in range(1, task.params.n + 1):
            of = f", completion {completion} of {task.params.n}" if task.params.n > 1 else ""
            gap = "\n" if headings else ""
            headings.append(f"{gap}--- {number} of {len(tasks)}{of}: {_label(task.prompt)}\n")
    return headings


def _label(prompt: Any) -> str:
    if isinstance(prompt, str):
        text = " ".join(prompt.split())
    elif prompt and all(isinstance(message, Mapping) for message in prompt):
        text = " ".join(str(prompt[-1].get("content", "")).split())
    else:
        return f"{len(prompt)} token ids"
    return text if len(text) <= _LABEL_WIDTH else f"{text[: _LABEL_WIDTH - 1]}…"
