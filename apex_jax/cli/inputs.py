"""Prompts from the command line, a file or standard input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any

from ..files.bounded_json import brief, parse_json
from ..machine.streams import is_terminal
from ..sampling_params import SamplingParams
from ..structured_outputs import StructuredOutputsParams
from .errors import UserError, as_user_errors

_PROMPT_FORMS = {"prompt": str, "prompt_token_ids": list, "messages": list}
_PARAMETERS = frozenset(field.name for field in fields(SamplingParams))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt in one of the forms that `LLM.generate` takes, and how to sample from it."""

    prompt: Any
    params: SamplingParams


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the ways to give prompts."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text to complete")
    group = parser.add_argument_group("prompts")
    group.add_argument("--file", metavar="FILE", help="read prompts from a file, one a line; `-` is standard input")
    group.add_argument(
        "--jsonl",
        action="store_true",
        help="the lines are JSON: a text, a list of token ids, a list of chat messages, or an object with `prompt`, "
        "`prompt_token_ids` or `messages` and sampling parameters of its own (implied by a name ending in .jsonl)",
    )
    group.add_argument("--chat", action="store_true", help="each text is a user's message to a chat model")


def read_tasks(args: argparse.Namespace, params: SamplingParams) -> list[Task]:
    """Return all prompts: those on the command line, then those of the file.

    Args:
        args: with the attributes of `add_prompt_arguments`.
        params: for prompts that state no parameters of their own.

    Raises:
        UserError: there are none, or a line cannot be read.
    """
    file = args.file
    if file is None and not args.prompts:
        if is_terminal(sys.stdin):
            raise UserError("no prompt: give one as an argument, with --file, or through standard input")
        file = "-"
    tasks = [Task(prompt=text, params=params) for text in args.prompts]
    if file is not None:
        is_json = args.jsonl or file.endswith(".jsonl")
        tasks += _parse(_lines(file), file, params) if is_json else _texts(_lines(file), params)
    if not tasks:
        raise UserError(f"{_label(file)} holds no prompts")
    return [_as_chat(task) if args.chat else task for task in tasks]


def _label(file: str | None) -> str:
    return "standard input" if file in (None, "-") else str(file)


def _lines(file: str) -> list[str]:
    try:
        with as_user_errors(OSError):
            text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        byte, place = error.object[error.start], error.start + 1
        said = f"{_label(file)} is not in UTF-8: its byte {place} is 0x{byte:02x}; save it in that encoding"
        raise UserError(said) from error
    # Some editors begin a file with a mark of byte order.
    return text.removeprefix("\ufeff").split("\n")


def _texts(lines: Iterable[str], params: SamplingParams) -> list[Task]:
    return [Task(prompt=line, params=params) for line in lines if line.strip()]


def _parse(lines: Iterable[str], file: str, params: SamplingParams) -> list[Task]:
    tasks = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                tasks.append(_task(parse_json(line), params))
            except (TypeError, ValueError) as error:
                raise UserError(f"{_label(file)}, line {number}: {brief(error)}") from error
    return tasks


def _task(entry: Any, params: SamplingParams) -> Task:
    if not isinstance(entry, dict):
        return Task(prompt=_checked(entry, str | list), params=params)
    given = [key for key in _PROMPT_FORMS if key in entry]
    if len(given) != 1:
        raise ValueError(f"an object needs one of {', '.join(_PROMPT_FORMS)}, got keys {list(entry)}")
    changes = {key: value for key, value in entry.items() if key != given[0]}
    if unknown := sorted(changes.keys() - _PARAMETERS):
        raise ValueError(f"unknown keys {unknown}; beside the prompt an object may hold {sorted(_PARAMETERS)}")
    if isinstance(structured := changes.get("structured_outputs"), dict):
        changes["structured_outputs"] = StructuredOutputsParams(**structured)
    return Task(prompt=_checked(entry[given[0]], _PROMPT_FORMS[given[0]]), params=replace(params, **changes))


def _checked(prompt: Any, form: type | UnionType) -> Any:
    if not isinstance(prompt, form):
        raise TypeError(f"a prompt is a text, a list of token ids or a list of chat messages, got {prompt!r}")
    return prompt


def _as_chat(task: Task) -> Task:
    if not isinstance(task.prompt, str):
        return task
    return replace(task, prompt=[{"role": "user", "content": task.prompt}])
