"""Numbers on the command line; what is no such number is refused with what is allowed."""

from __future__ import annotations

import argparse
import math

MOST = 1e9
"""Far more than anything that is asked for, and little enough that bytes, tokens and nanoseconds of it are exact."""


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


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


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
