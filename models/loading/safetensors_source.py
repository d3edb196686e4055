"""Tensors of a Hugging Face folder: safetensors, one file or sharded, mapped into memory one tensor at a time.

The format (a length, a JSON header, raw bytes) is read here rather than through the safetensors package because that
package's numpy reader has no bfloat16 and keeps a whole file mapped, which counts against the process's memory.
"""

import dataclasses
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ...files.bounded_json import MOST_BYTES, listed, parse_json, shown
from ..errors import CheckpointError
from . import checks
from .hf_names import Shape

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_MOST_DIMENSIONS = 32
_MOST_NUMBERS = 1 << 48
_LONGEST_NAME = 512

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    file: Path
    offset: int
    nbytes: int
    shape: Shape
    dtype: np.dtype


class SafetensorsSource:
    """Reads the tensors of a folder by name.

    Raises:
        CheckpointError: no safetensors file, one that is truncated or malformed, one whose tensors overlap or leave
            gaps, a file outside of the folder, or a tensor that two files have.
    """

    def __init__(self, folder: Path):
        self._entries: dict[str, _Entry] = {}
        for file in _files(folder):
            entries = _read_header(file)
            if twice := sorted(self._entries.keys() & entries.keys()):
                raise CheckpointError(f"{file} holds tensor {twice[0]}, and {self._entries[twice[0]].file.name} does")
            self._entries |= entries

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each tensor in the files."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as a read-only view of its file; the mapping ends with the view."""
        entry = self._entries[name]
        if math.prod(entry.shape) == 0:
            return np.zeros(entry.shape, entry.dtype)
        return np.memmap(entry.file, entry.dtype, "r", entry.offset, entry.shape)


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        shards = checks.json_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise CheckpointError(f"{folder / INDEX} has no 'weight_map' from tensor names to files")
        names = sorted(set(shards.values()))
        if absent := [name for name in names if not _is_inside(folder, name)]:
            raise CheckpointError(f"{folder} lacks files its {INDEX} names: {listed(absent)}")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}; other weight formats are not read")


def _is_inside(folder: Path, name: str) -> bool:
    """Return whether a file that an index names is there; refuse a name that leads out of the folder.

    A snapshot in a cache of the Hugging Face hub, `.../snapshots/<revision>`, is links into `.../blobs` beside it.
    """
    home = folder.resolve()
    allowed = (home, home.parents[1] / "blobs") if home.parent.name == "snapshots" else (home,)
    try:
        place = (folder / name).resolve()
        there = place.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX} names {shown(name)}, which is no file: {error!s:.200}") from error
    inside = any(place.is_relative_to(root) for root in allowed)
    if not inside or ".." in Path(name).parts or Path(name).is_absolute():
        raise CheckpointError(f"{folder / INDEX} names {shown(name)}, which lies outside of the folder")
    return there


def _read_header(file: Path) -> dict[str, _Entry]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{file} is truncated or no safetensors file: {size} bytes, header of {length}")
        if length > MOST_BYTES:
            raise CheckpointError(f"{file} has a header of {length:,} bytes; at most {MOST_BYTES:,} are read")
        try:
            header = parse_json(stream.read(length).decode(), once=True)
        except ValueError as error:
            raise CheckpointError(f"{file} has a damaged header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a damaged header: no JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(file, size, 8 + length, name, fields) for name, fields in header.items()}
    _check_cover(file, entries, 8 + length, size)
    return entries


def _entry(file: Path, size: int, start: int, name: str, fields: Any) -> _Entry:
    if len(name) > _LONGEST_NAME:
        raise CheckpointError(f"{file} has a damaged header: a tensor's name of {len(name)} characters")
    try:
        label, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has a damaged header at tensor {name}") from error
    numbers = (*shape, begin, end)
    whole = all(type(number) is int and number >= 0 for number in numbers)
    if len(shape) > _MOST_DIMENSIONS or not whole or math.prod(size or 1 for size in shape) > _MOST_NUMBERS:
        raise CheckpointError(
            f"{file} has a damaged header at tensor {name}: shape {shown(shape)}, bytes {shown(begin)} to {shown(end)}"
        )
    if not isinstance(label, str) or label not in _DTYPES:
        raise CheckpointError(f"{file}: tensor {name} has dtype {label!s:.50}; readable: {', '.join(_DTYPES)}")
    dtype = _DTYPES[label]
    if start + end > size:
        raise CheckpointError(f"{file} is truncated: {size} bytes, tensor {name} ends at {start + end}")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{file} has a damaged header: tensor {name} {list(shape)} {label} in {end - begin} bytes"
        )
    return _Entry(file=file, offset=start + begin, nbytes=end - begin, shape=shape, dtype=dtype)


def _check_cover(file: Path, entries: Mapping[str, _Entry], start: int, size: int) -> None:
    """Refuse tensors that overlap or leave bytes to nobody: such a header was written for other bytes."""
    placed = sorted((entry.offset, entry.offset + entry.nbytes, f"tensor {name}") for name, entry in entries.items())
    edges = [(start, start, "the header"), *placed, (size, size, "the end of the file")]
    for (_, before, left), (after, _, right) in pairwise(edges):
        if before != after:
            what = f"overlap by {before - after}" if before > after else f"leave a gap of {after - before}"
            raise CheckpointError(f"{file} has a damaged header: {left} and {right} {what} bytes")
