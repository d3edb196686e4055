"""`apex-jax generate`: completions in the shell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..machine.streams import is_terminal, takes_all_text
from .arguments import add_engine_arguments, add_model_arguments, add_sampling_arguments, open_llm, sampling_params
from .inputs import Task, add_prompt_arguments, read_tasks
from .printing import Printer
from .progress import Progress
from .report import RunSummary, summarise
from .serving import recorded, serve

if TYPE_CHECKING:
    from ..llm import LLM
    from ..outputs import RequestOutput

MAX_TOKENS = 128
"""The API's default of 16 cuts most answers short; a person at a terminal wants to read them."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "generate",
        help="complete prompts",
        description="Complete prompts and print the text. What is not given has the default of `LLM`, `EngineOptions` "
        "and `SamplingParams`.",
    )
    add_prompt_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    output.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print text as it comes (default: where standard output is a terminal)",
    )
    output.add_argument(
        "--warm-up", action="store_true", help="compile everything first, so that no request waits for a compilation"
    )
    output.add_argument(
        "--trace", type=Path, metavar="FILE", help="record what ran when, for `apex-jax timeline` and Perfetto"
    )
    output.add_argument(
        "--explain", action="store_true", help="say afterwards how strategy auto decided, on standard error"
    )
    add_sampling_arguments(parser, max_tokens=MAX_TOKENS)
    add_model_arguments(parser)
    add_engine_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UserError: the prompts, the parameters or the model cannot be used.
    """
    tasks = read_tasks(args, sampling_params(args))
    progress = Progress(sys.stderr)
    with progress.step(f"Loading {args.model}"):
        llm = open_llm(args)
    load_seconds = progress.seconds
    progress.say(_room(llm))
    if args.warm_up:
        llm.warm_up(use_tqdm=is_terminal(sys.stderr))
    with recorded(llm, args.trace):
        status = _serve(args, llm, tasks, progress, load_seconds)
    if args.explain:
        print(llm.explain(), file=sys.stderr)
    return status


def _room(llm: LLM) -> str:
    host = f", {llm.host_kv_tokens:,} in main memory" if llm.host_kv_tokens else ""
    return (
        f"KV cache of {llm.device_kv_tokens:,} tokens on {llm.device}{host}; programs are compiled as they are needed, "
        "most of them at the first start"
    )


def _serve(args: argparse.Namespace, llm: LLM, tasks: Sequence[Task], progress: Progress, load_seconds: float) -> int:
    streams = not args.json and (is_terminal(sys.stdout) if args.stream is None else args.stream)
    if streams:
        served = serve(llm, tasks, Printer(tasks, sys.stdout).add)
    else:
        with progress.counting(len(tasks), "request") as advance:
            served = serve(llm, tasks, lambda _, news: advance() if news.finished else None)
    summary = summarise(llm, served, load_seconds=load_seconds)
    if args.json:
        ascii_only = not takes_all_text(sys.stdout)
        print(as_json(args.model, tasks, served.outputs, summary, ascii_only=ascii_only))
    else:
        if not streams:
            printer = Printer(tasks, sys.stdout)
            for position, output in enumerate(served.outputs):
                printer.add(position, output)
        print(summary.line(), file=sys.stderr)
    failures = failed(served.outputs)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def failed(outputs: Sequence[RequestOutput]) -> list[str]:
    """Return a line for each completion that could not be brought to its end."""
    return [
        f"apex-jax: completion {completion.index + 1} of prompt {number} ended early: {completion.stop_reason}"
        for number, output in enumerate(outputs, start=1)
        for completion in output.outputs
        if completion.finish_reason == "abort"
    ]


def as_json(
    model: str, tasks: Sequence[Task], outputs: Sequence[RequestOutput], summary: RunSummary, *, ascii_only: bool
) -> str:
    """Return everything about a run as one JSON object."""
    requests = [
        {**asdict(output), "sampling_params": asdict(task.params)} for task, output in zip(tasks, outputs, strict=True)
    ]
    return json.dumps({"model": model, "requests": requests, "summary": summary.as_dict()}, ensure_ascii=ascii_only)
