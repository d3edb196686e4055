"""Configuration files, and their values checked for type and range: errors name the entry and what it held."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files.bounded_json import MOST_BYTES, read_json, shown
from ..errors import CheckpointError

MOST = 2**31 - 1
"""Of a size or a token id: what int32 holds, in which devices count."""

_LEAST_REAL, _MOST_REAL = 2.0**-126, 3.4e38
"""Beside 0, what float32 holds, in which devices compute."""


def json_object(path: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is no JSON object, or beyond the limits of `read_json`.
    """
    try:
        content = read_json(path, most_bytes=most_bytes)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, holds {type(content).__name__}")
    return content


def integer(name: str, value: Any, *, least: int = 1, most: int = MOST) -> int:
    """Return a whole number.

    Raises:
        ValueError: it is something else, below `least` or above `most`.
    """
    whole = not isinstance(value, bool) and isinstance(value, int)
    if not whole or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}, got {shown(value)}")
    return value


def number(name: str, value: Any, *, zero: bool = False) -> float:
    """Return a finite positive number; 0 is allowed with `zero`.

    Raises:
        ValueError: it is something else, or more or less than float32 can hold.
    """
    real = not isinstance(value, bool) and isinstance(value, int | float)
    if not real or not (value > 0 or (zero and value == 0)) or value == math.inf:
        wanted = "a finite number of at least 0" if zero else "a finite positive number"
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    if value and not _LEAST_REAL <= value <= _MOST_REAL:
        raise ValueError(f"{name} must lie between {_LEAST_REAL:.3g} and {_MOST_REAL:g}, got {shown(value)}")
    return float(value)


def truth(name: str, value: Any) -> bool:
    """Return true or false.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {shown(value)}")
    return value


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Return a mapping of named entries.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping, got {shown(value)}")
    return value


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Return the one, several or no token ids of an entry.

    Raises:
        ValueError: it is neither an integer of at least 0, a list of them, nor None.
    """
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return tuple(integer(f"every id of {name}", item, least=0) for item in value)
    return (integer(name, value, least=0),)
