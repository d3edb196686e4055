"""`apex-jax fit`: whether a model fits a GPU that is not there, and what its programs do on it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.whole_file import whole_file
from .arguments import add_engine_arguments, given_options
from .charts import add_output_argument, need_matplotlib, write
from .errors import UserError, as_user_errors

if TYPE_CHECKING:
    from ..fit.fit_report import FitReport
    from ..progress_bar import Bar

FRACTION_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
OWN_FRACTION = 0.92
"""Share of a GPU's memory that JAX may allocate in a process of `apex-jax`; 0.75 is JAX's own default."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "fit",
        help="say whether a model fits a GPU that is not there, and what its programs do",
        description="Compile every program that an engine of these options can need for a GPU that need not be there, "
        "and say what it takes of the GPU's memory, which programs copy weights or KV, how many kernels they launch "
        "and how many bytes they move. Nothing is run. It takes a few minutes.",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="t4, a10, a10g, l4, rtx-4090, a100, h100, gh200, or a file that --describe wrote",
    )
    parser.add_argument("--model", metavar="NAME", help="a preset's name, a folder, a GGUF file, or a hub name")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto: the GPU's half type")
    parser.add_argument("--num-layers", type=int, metavar="L", help="layers of the model, if not all")
    parser.add_argument(
        "--gpu-memory-fraction",
        type=float,
        metavar="F",
        help=f"share of the GPU's memory that JAX may allocate (default: {FRACTION_VARIABLE}, which `apex-jax` sets to "
        f"{OWN_FRACTION} where it is unset; JAX's own default is 0.75)",
    )
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_output_argument(parser, required=False)
    parser.add_argument(
        "--describe", type=Path, metavar="FILE", help="write a description of this machine's GPU, and nothing else"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.describe is not None:
        return _describe(args.describe)
    from ..fit.fit_report import compile_fit, lines
    from ..fit.gpu_target import find_target

    for name in ("device", "model"):
        if getattr(args, name) is None:
            raise UserError(f"fit needs --{name}")
    if args.output is not None:
        need_matplotlib()
    fraction = _fraction(args.gpu_memory_fraction)
    with as_user_errors(ValueError, OSError):
        target = find_target(args.device)
        from ..progress_bar import Bar

        with Bar(desc="compiling", unit=" programs", leave=False, disable=args.json) as bar:
            report = compile_fit(
                target,
                args.model,
                dtype=args.dtype,
                num_layers=args.num_layers,
                options=given_options(args),
                fraction=fraction,
                progress=lambda done, total: _show(bar, done, total),
            )
    print(json.dumps(report.as_json(), indent=1) if args.json else "\n".join(lines(report)))
    if args.output is not None:
        _draw(report, args.output)
    return 0 if report.fits else 1


def _show(bar: Bar, done: int, total: int) -> None:
    bar.total = total or None
    bar.update(done - bar.n)


def _draw(report: FitReport, path: Path) -> None:
    from ..fit.memory_chart import draw_fit

    with as_user_errors(ValueError):
        write(draw_fit(report), path)


def _describe(path: Path) -> int:
    from ..fit.describe_gpu import describe

    with as_user_errors(OSError, RuntimeError):
        text = describe()
        with whole_file(path) as file:
            file.write(text)
    print(f"wrote {path}")
    return 0


def _fraction(given: float | None) -> float:
    text = os.environ[FRACTION_VARIABLE]
    try:
        fraction = float(text) if given is None else given
    except ValueError:
        raise UserError(f"{FRACTION_VARIABLE} is {text!r}; a number above 0 and at most 1 is needed") from None
    if not 0 < fraction <= 1:
        raise UserError(f"--gpu-memory-fraction is {fraction}; a number above 0 and at most 1 is needed")
    return fraction
