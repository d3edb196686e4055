"""`apex-jax bench overlap`: every strategy on an emulated device beside this machine's real host."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.whole_file import check_writable
from ..scheduler.strategies import STRATEGIES
from .errors import UserError, as_user_errors
from .memory_warning import warn_of_memory
from .numbers import add_number, count, positive
from .progress import Progress

if TYPE_CHECKING:
    from ..bench.overlap import OverlapBenchmark
    from ..bench.steady_load import SteadyLoad

BATCH_OUTPUT = 100
MEASURING = "measuring the host"


def add_parser(benchmarks: argparse._SubParsersAction) -> None:
    """Add the benchmark to the parser of `apex-jax bench`."""
    parser = benchmarks.add_parser(
        "overlap",
        help="all strategies on an emulated device beside this machine's real host",
        description="Run every strategy on a device that computes nothing and takes the time that a named profile "
        "gives it, beside the real rest: host attention, host pages, threads, scheduler. Prints tokens a second, what "
        "the cost model predicts with this profile and a host measured in place, and one over the other. The numbers "
        "are emulated. Takes several times as long as the turns: memory is taken, the host is measured before the "
        "first round and after each, and requests are written to its memory before each turn. On 2 cores --rounds 2 "
        "took 98 s, of which 16 s were measured turns.",
    )
    _add_machine(parser)
    _add_measurement(parser)
    parser.set_defaults(run=_run)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("emulated machine")
    group.add_argument("--device", default="t4", help="accelerator, see `apex-jax simulate --list` (default: t4)")
    group.add_argument("--shape", default="llama-3.2-1b", help="model whose sizes are used (default: llama-3.2-1b)")
    group.add_argument("--hardware", type=Path, metavar="FILE", help="JSON file with devices and models of your own")
    add_number(group, "--device-kv-tokens", "N", "KV on the device", default=4000)
    add_number(group, "--host-kv-gb", "GB", "KV in this machine's memory", kind=positive, default=8.0)
    add_number(group, "--page-size", "S", "tokens in a page", default=64)
    group.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="of KV and attention on the host (default: bfloat16)",
    )


def _add_measurement(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measurement")
    add_number(group, "--context", "N", "mean context of a request", default=400)
    group.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        metavar="NAME",
        help=f"{', '.join(STRATEGIES)} (default: all)",
    )
    add_number(group, "--seconds", "S", "of each turn of a strategy", kind=positive, default=2.0)
    add_number(group, "--rounds", "N", "turns of each strategy", default=5)
    group.add_argument(
        "--requests",
        nargs="+",
        type=count,
        metavar="N",
        help="serve finite batches of so many requests instead, with strategy auto and on the device alone",
    )
    add_number(group, "--output", "N", f"tokens of a request in a finite batch (default: {BATCH_OUTPUT})")
    group.add_argument("--json", action="store_true", help="print a JSON list of rows instead of text")
    group.add_argument(
        "--trace", type=Path, metavar="FILE", help="write some iterations of each strategy, for `apex-jax timeline`"
    )


def _check_together(args: argparse.Namespace) -> None:
    for name in ("strategies", "requests"):
        given = getattr(args, name) or ()
        for value in given:
            if list(given).count(value) > 1:
                raise UserError(f"--{name} has {value} more than once")
    if args.requests:
        if args.trace:
            raise UserError("--trace is for the steady state; leave --requests out")
        if args.strategies:
            raise UserError("--strategies is for the steady state; --requests takes auto and the device alone")
    elif args.output is not None:
        raise UserError("--output is for finite batches; give --requests")


def _run(args: argparse.Namespace) -> int:
    from ..bench.overlap import OverlapBenchmark
    from ..scheduler.cost_model.catalogue import Catalogue

    _check_together(args)
    with as_user_errors(ValueError, OSError, MemoryError):
        catalogue = Catalogue.built_in()
        if args.hardware is not None:
            catalogue = catalogue.extended(args.hardware)
        benchmark = OverlapBenchmark(
            device=catalogue.device(args.device),
            model=catalogue.model(args.shape),
            device_kv_tokens=args.device_kv_tokens,
            context=args.context,
            host_kv_bytes=int(args.host_kv_gb * 1e9),
            strategies=tuple(args.strategies or STRATEGIES),
            seconds=args.seconds,
            rounds=args.rounds,
            page_size=args.page_size,
            dtype=args.dtype,
        )
        if args.trace is not None:
            check_writable(args.trace)
        with Progress(sys.stderr).step(f"Taking {args.host_kv_gb:g} GB for KV"):
            steady_load = benchmark.steady_load()
    warn_of_memory(
        sys.stderr, device=benchmark.device, model=benchmark.model, device_kv_tokens=benchmark.device_kv_tokens
    )
    measure = _batches if args.requests else _steady
    measure(args, benchmark, steady_load)
    return 0


def _steady(args: argparse.Namespace, benchmark: OverlapBenchmark, steady_load: SteadyLoad) -> None:
    from ..bench.overlap import run
    from ..bench.report import print_rows, rows
    from ..tracing.recorder import Recorder

    recorder = Recorder(label="emulated") if args.trace else None
    with Progress(sys.stderr).through(_turns(benchmark), "turn") as advance:
        turns = run(benchmark, steady_load, progress=lambda _: advance(), recorder=recorder)
    _print(rows(benchmark, turns), print_rows, as_json=args.json)
    if recorder is not None:
        try:
            recorder.save(args.trace)
        except OSError as error:
            # Its own message names the file that becomes the trace once it is whole.
            raise UserError(f"{args.trace}: {error.strerror or error}") from error


def _turns(benchmark: OverlapBenchmark) -> list[str]:
    """Return what `run` does in turn, for a person who waits."""
    rounds = range(1, benchmark.rounds + 1)
    turns = (*benchmark.strategies, MEASURING)
    return [MEASURING, *(f"round {it} of {benchmark.rounds}: {turn}" for it in rounds for turn in turns)]


def _batches(args: argparse.Namespace, benchmark: OverlapBenchmark, steady_load: SteadyLoad) -> None:
    from ..bench.batches import POLICIES, batch_rows, print_batches, run_batches

    output = args.output or BATCH_OUTPUT
    if output >= 2 * benchmark.context:
        raise UserError(f"--output {output} leaves no prompt in a mean context of {benchmark.context}")
    batches = [f"{name}, round {it}" for it in range(1, benchmark.rounds + 1) for name in POLICIES]
    steps = [f"{size} requests: {step}" for size in args.requests for step in (*batches, MEASURING)]
    with Progress(sys.stderr).through([MEASURING, *steps], "batch") as advance:
        served = list(run_batches(benchmark, steady_load, args.requests, output=output, progress=advance))
    _print(batch_rows(benchmark, served, output=output), print_batches, as_json=args.json)


def _print(table: list[dict[str, Any]], as_text: Callable[..., None], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(table, indent=2))
    else:
        as_text(table, print)
