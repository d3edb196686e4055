"""Runs tasks on an `LLM` and puts what comes in pieces together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.whole_file import check_writable
from ..outputs import CompletionOutput, RequestOutput
from .errors import as_user_errors
from .inputs import Task

if TYPE_CHECKING:
    from ..llm import LLM
    from ..tracing.recorder import Recorder

OnNews = Callable[[int, RequestOutput], object]
"""Called with a task's position and what is new of it."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """Whole results in the order of the tasks, and the seconds they took together."""

    outputs: list[RequestOutput]
    seconds: float


def serve(llm: LLM, tasks: Sequence[Task], on_news: OnNews, *, served_before: int = 0) -> Served:
    """Run all tasks together.

    Args:
        llm: runs them.
        tasks: prompts with their parameters.
        on_news: told of everything as it comes.
        served_before: prompts that `llm` was given before these: its request ids count prompts from 0.

    Raises:
        UserError: a prompt or its parameters cannot be served; nothing has run then.
    """
    start = time.perf_counter()
    # The call itself reports bad input; what goes wrong later is a defect and keeps its traceback.
    with as_user_errors(TypeError, ValueError):
        stream = llm.stream([task.prompt for task in tasks], [task.params for task in tasks])
    pieces: list[list[RequestOutput]] = [[] for _ in tasks]
    for news in stream:
        position = int(news.request_id) - served_before
        pieces[position].append(news)
        on_news(position, news)
    return Served(outputs=[_join(parts) for parts in pieces], seconds=time.perf_counter() - start)


@contextmanager
def recorded(llm: LLM, path: Path | None) -> Iterator[None]:
    """Record what runs in the context and write it to a file; do neither if there is no path.

    Raises:
        UserError: the file cannot be written; said before anything runs.
    """
    if path is None:
        yield
        return
    with as_user_errors(OSError):
        check_writable(path)
    with ExitStack() as after:
        recording = llm.recording()
        # Saved once the recording is complete, and when an interrupt has cut the run short too.
        recorder = recording.__enter__()
        after.callback(_save, recorder, path)
        after.push(recording)
        yield


def _save(recorder: Recorder, path: Path) -> None:
    with as_user_errors(OSError):
        recorder.save(path)


def _join(pieces: Sequence[RequestOutput]) -> RequestOutput:
    """Return a request's result from all its pieces."""
    indices = sorted({piece.outputs[0].index for piece in pieces})
    completions = [_join_completion([p.outputs[0] for p in pieces if p.outputs[0].index == index]) for index in indices]
    return replace(pieces[-1], outputs=completions)


def _join_completion(pieces: Sequence[CompletionOutput]) -> CompletionOutput:
    wants_logprobs = pieces[-1].logprobs is not None
    return replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        logprobs=[entry for piece in pieces for entry in piece.logprobs or []] if wants_logprobs else None,
    )
