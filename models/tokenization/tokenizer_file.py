"""What is checked of a folder's tokenizer before transformers and the tokenizers library read it.

The library does what a file says: a few hundred steps that each make a text twice as long end in the operating system's
killing the process.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...files.bounded_json import read_text, shown
from ..errors import CheckpointError
from ..loading import checks

MOST_BYTES = 64 << 20
"""Of any file: a vocabulary of 256,000 has some 33 million."""

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MOST_VALUES, _MOST_SETTINGS = 4_000_000, 100_000
_MOST_STEPS = 32
_MOST_GROWTH = 1000
_MOST_PIECES = 32
_GROWTH = {
    "ByteLevel": 2,
    "Precompiled": 16,
    "NFKD": 16,
    "NFKC": 16,
    "NFD": 4,
    "NFC": 2,
    "Lowercase": 2,
    "BertNormalizer": 4,
}


def check_folder(folder: Path) -> None:
    """Check a folder in Hugging Face format.

    Raises:
        CheckpointError: a file is too large, no JSON, names files elsewhere, or makes texts grow without measure.
    """
    for file in folder.iterdir():
        size = file.stat().st_size if file.is_file() else 0
        if file.suffix in (".json", ".model", ".jinja", ".txt") and size > MOST_BYTES:
            raise CheckpointError(f"{file} has {size:,} bytes; at most {MOST_BYTES:,} are read")
    settings = {name: _read(folder / name, _MOST_SETTINGS) for name in _SETTINGS if (folder / name).is_file()}
    others = settings.get(_SETTINGS[0], {}).get("fast_tokenizer_files", [])
    if not isinstance(others, list) or not all(isinstance(name, str) and Path(name).name == name for name in others):
        file = folder / _SETTINGS[0]
        raise CheckpointError(f"{file}: fast_tokenizer_files is {shown(others)}, not names in the folder")
    for file in folder.glob("tokenizer*.json"):
        if file.name not in _SETTINGS:
            content = _read(file, _MOST_VALUES)
            for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
                try:
                    _check_part(part, list(_steps(content.get(part))))
                except ValueError as error:
                    raise CheckpointError(f"{file} cannot be used: {error}") from error


def _read(file: Path, most_values: int) -> dict[str, Any]:
    try:
        text = read_text(file, most_bytes=MOST_BYTES)
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if (values := sum(text.count(mark) for mark in ",[{")) > most_values:
        raise CheckpointError(f"{file} has some {values:,} values; at most {most_values:,} are read")
    return checks.json_object(file, most_bytes=MOST_BYTES)


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part, those of sequences one by one."""
    if isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers", "processors", "decoders"):
            inner = part.get(name)
            for step in inner if isinstance(inner, list) else ():
                yield from _steps(step)


def _check_part(part: str, steps: list[Mapping[str, Any]]) -> None:
    if len(steps) > _MOST_STEPS:
        raise ValueError(f"its {part} has {len(steps)} steps; at most {_MOST_STEPS} are allowed")
    growth = math.prod(_growth(step) for step in steps)
    if growth > _MOST_GROWTH:
        raise ValueError(f"its {part} makes texts {growth:,.0f} times as long; at most {_MOST_GROWTH:,} is allowed")
    for step in steps:
        special = step.get("special_tokens")
        pieces = [step.get("single"), step.get("pair"), *(special.values() if isinstance(special, dict) else ())]
        for piece in pieces:
            inner = piece.get("ids") if isinstance(piece, dict) else piece
            if isinstance(inner, list) and len(inner) > _MOST_PIECES:
                raise ValueError(f"its {part} adds {len(inner):,} tokens at once; at most {_MOST_PIECES} are allowed")


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many times as long a step may make a text."""
    pattern, content = step.get("pattern"), step.get("content", step.get("prepend"))
    length = len(content.encode()) if isinstance(content, str) else 0
    if step.get("type") == "Replace":
        found = pattern.get("String") if isinstance(pattern, dict) else None
        # A regular expression finds the empty text too, between any two bytes.
        return max(1.0, length / len(found.encode())) if isinstance(found, str) and found else 1.0 + length
    if step.get("type") in ("Prepend", "Metaspace"):
        return max(1.0, length / 100)
    return _GROWTH.get(str(step.get("type")), 1)
