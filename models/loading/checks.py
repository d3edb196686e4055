"""Values of a configuration file, each checked for its type and range: the error names the entry and what it held."""

import math
from collections.abc import Mapping
from typing import Any


def integer(name: str, value: Any, *, least: int = 1) -> int:
    """Return a whole number.

    Raises:
        ValueError: it is something else, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return value


def number(name: str, value: Any, *, zero: bool = False) -> float:
    """Return a finite positive number; 0 is allowed with `zero`.

    Raises:
        ValueError: it is something else.
    """
    real = not isinstance(value, bool) and isinstance(value, int | float)
    if not real or not math.isfinite(value) or not (value > 0 or (zero and value == 0)):
        wanted = "a finite number of at least 0" if zero else "a finite positive number"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return float(value)


def truth(name: str, value: Any) -> bool:
    """Return true or false.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Return a mapping of named entries.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping, got {value!r}")
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
