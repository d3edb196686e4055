"""`apex-jax timeline`: a picture of what overlapped in a run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .charts import add_output_argument, need_matplotlib, write
from .errors import as_user_errors


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "timeline",
        help="draw a few iterations of a trace",
        description="Draw a few iterations of a trace from `apex-jax generate --trace`: one lane each for device, "
        "host, transfers, waits and Python. The whole trace opens in https://ui.perfetto.dev.",
    )
    parser.add_argument("trace", type=Path, help="the trace, a JSON file")
    add_output_argument(parser, required=True)
    parser.add_argument(
        "--iterations",
        type=_range,
        metavar="A:B",
        help="iterations A to B - 1 (default: three from the middle in which device and host work)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..tracing.recorder import load
    from ..tracing.timeline import choose
    from ..tracing.timeline_chart import draw

    need_matplotlib()
    with as_user_errors(OSError, ValueError):
        window = choose(load(args.trace), args.iterations)
    print(window.summary())
    write(draw(window), args.output)
    return 0


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no range; 20:23 means the iterations 20, 21 and 22")
    return int(match[1]), int(match[2])
