"""Numbers on the command line; what is no such number is refused with what is allowed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

MOST = 1e9
"""Far more than anything that is asked for, and little enough that bytes, tokens and nanoseconds of it are exact."""


def add_number(
    parser: argparse._ActionsContainer,
    option: str,
    metavar: str,
    what: str,
    *,
    kind: Callable[[str], Any] | None = None,
    default: float | None = None,
) -> None:
    """Add an option for a number; its help ends with the default if it has one.

    Args:
        parser: where it is added.
        option: such as "--pages".
        metavar: a letter for it.
        what: its help.
        kind: what reads it; `count` if None.
        default: what it is where it is not given; what the parser has for such options if None.
    """
    shown = "" if default is None else f" (default: {default:g})"
    number = parser.add_argument(option, type=kind or count, metavar=metavar, help=f"{what}{shown}")
    if default is not None:
        number.default = default


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, least=1)


def count_or_zero(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, least=0)


def positive(text: str) -> float:
    """Read a number above 0."""
    value = _float(text)
    if not 0 < value < MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below {MOST:g}")
    return value


def not_negative(text: str) -> float:
    """Read a number of at least 0."""
    value = _float(text)
    if not 0 <= value < MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0 and below {MOST:g}")
    return value


def _whole(text: str, *, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
