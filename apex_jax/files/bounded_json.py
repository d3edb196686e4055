"""JSON that others wrote: what no reader of this package could use is refused before it reaches one.

Python's own reader takes numbers of thousands of digits, which overflow in the first sum of floats, texts that no
encoding has, and files that do not end; and it ends deep nesting in a RecursionError, which is no ValueError.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

MOST_BYTES = 2 << 20
"""Of a file, where its reader says nothing else: tens of thousands of names, and read within a second."""

MOST_LEVELS = 64
"""Of objects and lists inside each other."""

MOST_DIGITS = 308
"""Of a whole number: a float holds all of these."""

_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> str:
    """Read a text file in UTF-8, a mark of byte order left out.

    Args:
        path: the file.
        most_bytes: no more than these are read.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not in UTF-8.
        ValueError: it is longer.
    """
    content = bytearray()
    with open(path, "rb") as file:
        # Asked for all that is allowed at once, Python would reserve as much.
        while chunk := file.read(1 << 20):
            content += chunk
            if len(content) > most_bytes:
                raise ValueError(f"it has more than {most_bytes:,} bytes, which is the limit")
    return content.decode("utf-8-sig")


def parse_json(text: str, *, once: bool = False) -> Any:
    """Return what a JSON text says.

    Args:
        text: the whole text.
        once: refuse a name that an object has twice, of which the last would count.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: it nests deeper than `MOST_LEVELS`, or has a whole number of more than `MOST_DIGITS` digits, half a
            character, or, with `once`, a name twice.
    """
    deep = f"it nests deeper than {MOST_LEVELS} levels"
    try:
        value = json.loads(text, parse_int=_whole, object_pairs_hook=_once if once else None)
    except RecursionError:
        raise ValueError(deep) from None
    if _levels_exceed(value):
        raise ValueError(deep)
    if _HALF_CHARACTER.search(text):
        _refuse_half_characters(value)
    return value


def read_json(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> Any:
    """Read a JSON file; arguments and errors as in `read_text` and `parse_json`."""
    return parse_json(read_text(path, most_bytes=most_bytes))


def shown(value: Any, most: int = 200) -> str:
    """Return a value as an error message shows it: `repr`, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 4 * most:
        return f"a whole number of {value.bit_length():,} bits"
    text = repr(value[:most] if isinstance(value, str | bytes | list | tuple) else value)
    return cut(text, most)


def brief(error: BaseException, most: int = 1000) -> str:
    """Return what an error says, cut where it is long: a value in it may be as large as the file it comes from."""
    return cut(str(error), most)


def cut(text: str, most: int) -> str:
    """Return a text, or the beginning of a long one."""
    return text if len(text) <= most else f"{text[:most]}..."


def listed(items: Sequence[str], between: str = ", ", most: int = 30, longest: int = 400) -> str:
    """Return texts joined as an error message shows them: the first ones, and how many more there are."""
    more = [f"and {len(items) - most:,} more"] if len(items) > most else []
    return between.join([*(cut(item, longest) for item in items[:most]), *more])


def _whole(digits: str) -> int:
    count = len(digits.lstrip("-"))
    if count > MOST_DIGITS:
        raise ValueError(f"a number of {count} digits is too large")
    return int(digits)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{shown(name)[1:-1]} is there twice")
        values[name] = value
    return values


def _levels_exceed(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        outer = [part for part in level if isinstance(part, dict | list)]
        level = [inner for part in outer for inner in (part.values() if isinstance(part, dict) else part)]
        if not outer:
            return False
    return True


def _refuse_half_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character, {error.object[error.start : error.end]!r}, is no text") from None
