"""`apex-jax bench`: measurements of this machine. Each benchmark adds a parser of its own here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from . import overlap
from .errors import UserError, as_user_errors
from .numbers import add_number
from .progress import Progress

if TYPE_CHECKING:
    from ..bench.host_attention import AttentionBenchmark


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser("bench", help="measure this machine", description="Measure this machine.")
    benchmarks = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    _add_attention(benchmarks)
    _add_pages(benchmarks)
    overlap.add_parser(benchmarks)


def _add_attention(benchmarks: argparse._SubParsersAction) -> None:
    parser = benchmarks.add_parser(
        "attention",
        help="decode attention on the CPU beside the bandwidth of reading memory",
        description="Measure decode attention over KV in host memory: GB/s, the fraction of this machine's streaming "
        "read taken in turn with it, and the error against float64, of the native kernel, plain JAX and, if it is "
        "installed, torch; and the time of the smallest call (case 1x64). Without options every shape, type and case: "
        "several minutes on an idle machine. --implementation, --shape, --dtype and --case may be given several times.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--json", action="store_true", default=False, help="print a JSON list of rows instead of text")
    parser.add_argument(
        "--implementation", dest="implementations", action="append", metavar="NAME", help="native, jax or torch"
    )
    parser.add_argument(
        "--shape",
        dest="shapes",
        action="append",
        type=_shape,
        metavar="N/K/H",
        help="query heads, key/value heads and head width, such as 32/8/128",
    )
    parser.add_argument("--dtype", dest="dtypes", action="append", metavar="DTYPE", help="float32, bfloat16 or float16")
    parser.add_argument(
        "--case",
        dest="cases",
        action="append",
        metavar="ROWSxTOKENS",
        help="8x2048, 64x256, 1x16384, 1x64 (the smallest call) or ragged (16 rows of 17 to 4,096 tokens)",
    )
    add_number(parser, "--repeats", "N", "of each measurement; the median counts")
    add_number(parser, "--threads", "N", "of the native kernel (default: all of JAX's)")
    parser.set_defaults(run=_run_attention)


def _add_pages(benchmarks: argparse._SubParsersAction) -> None:
    parser = benchmarks.add_parser(
        "pages",
        help="moves of whole pages in and out of the host cache",
        description="Measure the bandwidth of copying pages of the host cache (8 key/value heads of width 128, "
        "bfloat16) into one contiguous array and back, beside that of reading memory.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--json", action="store_true", default=False, help="print a JSON list of rows instead of text")
    add_number(parser, "--pages", "N", "moved at once (default: 256)")
    add_number(parser, "--repeats", "N", "of each measurement; the median counts")
    parser.set_defaults(run=_run_pages)


def _run_attention(args: argparse.Namespace) -> int:
    import jax

    from ..bench.host_attention import CASES, DTYPES, IMPLEMENTATIONS, AttentionBenchmark, print_rows, run

    options: dict[str, Any] = {
        name: value for name, value in vars(args).items() if name in ("repeats", "threads", "shapes")
    }
    for option, name, allowed in (
        ("--implementation", "implementations", IMPLEMENTATIONS),
        ("--dtype", "dtypes", DTYPES),
        ("--case", "cases", CASES),
    ):
        if name in args:
            options[name] = _known(option, getattr(args, name), allowed)
    if "shapes" in options:
        options["shapes"] = _once(options["shapes"])
    with as_user_errors(ValueError):
        benchmark = AttentionBenchmark(**options)
    with jax.default_device(jax.devices("cpu")[0]):
        if args.json:
            _print_json(benchmark)
        else:
            print_rows(run(benchmark), _print)
    return 0


def _print_json(benchmark: AttentionBenchmark) -> None:
    """Measure, and print a JSON list of the rows; of those that are finished if it is interrupted."""
    from ..bench.host_attention import row_names, run

    rows: list[dict[str, Any]] = []
    try:
        with Progress(sys.stderr).through(row_names(benchmark), "row") as advance:
            for row in run(benchmark):
                rows.append(row)
                advance()
    finally:
        _print(json.dumps(rows, indent=2))


def _known(option: str, values: list[str], allowed: Collection[str]) -> list[str]:
    for value in values:
        if value not in allowed:
            raise UserError(f"{option} is {value!r}, it must be one of {', '.join(allowed)}")
    return _once(values)


def _once(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _run_pages(args: argparse.Namespace) -> int:
    import jax

    from ..bench.host_pages import PagesBenchmark, run

    options: dict[str, Any] = {name: value for name, value in vars(args).items() if name in ("pages", "repeats")}
    most = PagesBenchmark().pool_pages
    if options.get("pages", 1) > most:
        raise UserError(f"--pages is {options['pages']}, it must be at most {most}, the pages that are moved among")
    benchmark = PagesBenchmark(**options)
    with jax.default_device(jax.devices("cpu")[0]), Progress(sys.stderr).step("Moving pages"):
        rows = list(run(benchmark))
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        _print(
            f"{row['operation']:>22}: {row['gb_per_s']:5.1f} GB/s ({row['pages']} pages of {row['page_bytes']} bytes), "
            f"streaming read {row['stream_gb_per_s']:.1f} GB/s"
        )
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split("/")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; write N/K/H, such as 32/8/128")
    query_heads, kv_heads, width = map(int, parts)
    if query_heads % kv_heads:
        raise argparse.ArgumentTypeError(f"{query_heads} query heads are no multiple of {kv_heads} key/value heads")
    return query_heads, kv_heads, width
