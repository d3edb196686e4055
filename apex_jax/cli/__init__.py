"""The `apex-jax` command.

Each subcommand is a module with `add_parser`. None of them imports JAX before it runs, so that help and mistyped
options answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event
from typing import NoReturn

from .. import __version__
from ..machine.streams import show_all
from . import bench, demo, explain, fit, generate, info, interrupts, plan, profile, reproduce, simulate, timeline
from .errors import USER_ERROR_STATUS, Parser, UserError

INTERRUPTED_STATUS = 130
"""128 + SIGINT, which shells report for a command ended by Ctrl-C."""

INTERRUPTED = "\napex-jax: interrupted"


def build_parser() -> Parser:
    """Return the parser of all subcommands; each sets `run`, which takes the arguments and returns the exit status."""
    parser = Parser(
        prog="apex-jax",
        description="LLaMA inference in JAX with the KV cache in pages.",
        epilog="`apex-jax COMMAND --help` lists a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"apex-jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (generate, demo, info, fit, bench, profile, explain, timeline, plan, simulate, reproduce):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None, *, interrupted: Callable[[], object] = lambda: None) -> int:
    """Run a command line and return its exit status.

    Args:
        argv: arguments after the program's name; those of the process if None.
        interrupted: called when Ctrl-C has become an exception.
    """
    # transformers would say that PyTorch is missing; only its tokenizers are used here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # JAX would leave a quarter of a GPU's memory to others; nothing but this command runs in its process.
    os.environ.setdefault(fit.FRACTION_VARIABLE, str(fit.OWN_FRACTION))
    try:
        args = build_parser().parse_args(argv)
        with interrupts.kept(interrupted):
            status = args.run(args)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"apex-jax: error: {error}", file=sys.stderr)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; a second complaint at interpreter exit is avoided.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def process() -> NoReturn:
    """Run the command line of this process and end it: the entry point of `apex-jax`."""
    show_all(sys.stdout, sys.stderr)
    raised = Event()
    with interrupts.ended_if_ignored(raised, status=INTERRUPTED_STATUS, message=f"{INTERRUPTED}\n"):
        status = main(interrupted=raised.set)
    if status == INTERRUPTED_STATUS:
        # Libraries that were interrupted in their start leave threads for which the interpreter would wait a minute.
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
