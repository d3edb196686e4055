"""What is checked of a folder's tokenizer before transformers and the tokenizers library read it.

The library does what a file says: a few hundred steps that each make a text twice as long end in the operating system's
killing the process.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...files.bounded_json import read_text, shown
from ..errors import CheckpointError
from ..loading import checks

MOST_BYTES = 64 << 20
"""Of any file: a vocabulary of 256,000 has some 33 million."""

LONGEST_TOKEN = 1024
"""Characters: eight times the longest of published vocabularies."""

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MOST_VALUES, _MOST_SETTINGS = 4_000_000, 100_000
_MOST_MODEL = 8 << 20
_MOST_FIELDS = 400_000
_PIECES = 1
_LINES = re.compile(rb"(?:[A-Za-z0-9+/=]+ \d+\r?\n?)*")
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
        CheckpointError: a file is too large, damaged, names files elsewhere, has tokens that are too long, or makes
            texts grow without measure.
    """
    for file in folder.iterdir():
        size = file.stat().st_size if file.is_file() else 0
        most = _MOST_MODEL if file.suffix == ".model" else MOST_BYTES
        if file.suffix in (".json", ".model", ".jinja", ".txt") and size > most:
            raise CheckpointError(f"{file} has {size:,} bytes; at most {most:,} are read")
    settings = {name: _read(folder / name, _MOST_SETTINGS) for name in _SETTINGS if (folder / name).is_file()}
    others = settings.get(_SETTINGS[0], {}).get("fast_tokenizer_files", [])
    if not isinstance(others, list) or not all(isinstance(name, str) and Path(name).name == name for name in others):
        file = folder / _SETTINGS[0]
        raise CheckpointError(f"{file}: fast_tokenizer_files is {shown(others)}, not names in the folder")
    for file in (*folder.glob("tokenizer*.json"), *folder.glob("vocab.json"), *folder.glob("tokenizer.model")):
        if file.name not in _SETTINGS:
            try:
                _check_content(file)
            except ValueError as error:
                raise CheckpointError(f"{file} cannot be used: {error}") from error


def _check_content(file: Path) -> None:
    if file.suffix == ".model":
        check_pieces(file.read_bytes())
        return
    content = _read(file, _MOST_VALUES)
    if file.name == "vocab.json":
        _check_tokens(content)
        return
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        _check_part(part, list(_steps(content.get(part))))
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        _check_tokens(vocabulary)


def _check_tokens(tokens: Iterable[str]) -> None:
    """Refuse tokens whose every cut in two would be looked up for hours where merges are made of them."""
    if (longest := max(map(len, tokens), default=0)) > LONGEST_TOKEN:
        raise ValueError(f"a token has {longest:,} characters; at most {LONGEST_TOKEN:,} are read")


def check_pieces(content: bytes) -> None:
    """Check a `tokenizer.model`: a SentencePiece model, or lines of tokens in base 64 and their ranks.

    Of the former (https://protobuf.dev/programming-guides/encoding) only the lengths of its fields are read here.

    Raises:
        ValueError: it is neither, or has tokens that are too long.
    """
    if _LINES.fullmatch(content):
        _check_tokens(line.decode() for line in content.splitlines())
        return
    at = fields = 0
    while at < len(content):
        fields += 1
        if fields > _MOST_FIELDS:
            raise ValueError(f"it has more than {_MOST_FIELDS:,} tokens")
        tag, at = _variable(content, at)
        length = {0: 0, 1: 8, 2: 0, 5: 4}.get(tag & 7)
        if length is None:
            raise ValueError(f"it is no SentencePiece model: a field of kind {tag & 7} at byte {at}")
        if tag & 7 in (0, 2):
            value, at = _variable(content, at)
            length = value if tag & 7 == 2 else 0
        if tag >> 3 == _PIECES and length > LONGEST_TOKEN:
            raise ValueError(f"a token has {length:,} bytes; at most {LONGEST_TOKEN:,} are read")
        at += length
    if at > len(content):
        raise ValueError(f"it is no SentencePiece model: a field ends at byte {at:,} of {len(content):,}")


def _variable(content: bytes, at: int) -> tuple[int, int]:
    """Return a number of as many bytes as it needs, seven bits in each, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return value, at
    raise ValueError(f"it is no SentencePiece model: a number is cut at byte {at:,}")


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
