"""The header of a GGUF file: metadata and where each tensor lies.

The `gguf` package names the types and knows their sizes; the header itself is read here, because the package's reader
maps every string of a vocabulary as an array of its own, which takes seconds, and takes truncated files for granted.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ...files.bounded_json import shown
from ..errors import CheckpointError
from .hf_names import Shape

_SCALARS = {
    gguf.GGUFValueType.UINT8: "<B",
    gguf.GGUFValueType.INT8: "<b",
    gguf.GGUFValueType.UINT16: "<H",
    gguf.GGUFValueType.INT16: "<h",
    gguf.GGUFValueType.UINT32: "<I",
    gguf.GGUFValueType.INT32: "<i",
    gguf.GGUFValueType.FLOAT32: "<f",
    gguf.GGUFValueType.BOOL: "<?",
    gguf.GGUFValueType.UINT64: "<Q",
    gguf.GGUFValueType.INT64: "<q",
    gguf.GGUFValueType.FLOAT64: "<d",
}

# Of a header. Its elements are those of all arrays together: a vocabulary of 256,000 has some 1.3 million.
_MOST_BYTES = 64 << 20
_MOST_SETTINGS = 10_000
_MOST_TENSORS = 100_000
_MOST_ELEMENTS = 1 << 21
_MOST_LEVELS = 4
_MOST_ALIGNMENT = 1 << 20
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies: type, shape (outermost first), byte offset in the file and size in bytes."""

    type: gguf.GGMLQuantizationType
    shape: Shape
    offset: int
    nbytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GGUFFile:
    """An opened header."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def raw(self, name: str) -> np.ndarray:
        """Return a tensor's bytes, uint8, as a read-only view of the file; the mapping ends with the view."""
        info = self.tensors[name]
        return np.asarray(np.memmap(self.path, np.uint8, "r", info.offset, (info.nbytes,)))


def open_gguf(path: Path) -> GGUFFile:
    """Read a header.

    Raises:
        CheckpointError: not a GGUF file, truncated, beyond the limits of a header, of a version or type that is not
            known, or with tensors that overlap or leave gaps.
    """
    if path.stat().st_size < 24:
        raise CheckpointError(f"{path} is no GGUF file: {path.stat().st_size} bytes")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        try:
            return _parse(path, cursor)
        except (struct.error, ValueError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is a damaged GGUF file at byte {cursor.offset}: {error}") from error


class _Cursor:
    """Reads values one after another; every read is checked against the end of the file and the limits of a header."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.offset = 0
        self.size = len(data)
        self._elements = 0

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self.offset)
        self._advance(struct.calcsize(form), "a number")
        return value

    def count(self, what: str, most: int) -> int:
        """Return how many there are of something."""
        count = self.scalar("<Q")
        if count > most:
            raise ValueError(f"{count:,} {what}; at most {most:,} are read")
        return count

    def string(self) -> str:
        length = self.scalar("<Q")
        start = self._advance(length, f"a string of {length} bytes")
        return self._data[start : self.offset].decode("utf-8", errors="replace")

    def value(self, kind: gguf.GGUFValueType, depth: int = 0) -> Any:
        if kind == gguf.GGUFValueType.STRING:
            return self.string()
        if kind == gguf.GGUFValueType.ARRAY:
            return self._array(depth)
        return self.scalar(_SCALARS[kind])

    def _array(self, depth: int) -> list[Any]:
        if depth == _MOST_LEVELS:
            raise ValueError(f"arrays nest deeper than {_MOST_LEVELS} levels")
        kind = gguf.GGUFValueType(self.scalar("<I"))
        count = self.count("values in an array", _MOST_ELEMENTS - self._elements)
        self._elements += count
        if kind not in _SCALARS:
            return [self.value(kind, depth + 1) for _ in range(count)]
        form = f"<{count}{_SCALARS[kind][1]}"
        start = self._advance(struct.calcsize(form), f"an array of {count} values")
        return list(struct.unpack_from(form, self._data, start))

    def _advance(self, length: int, what: str) -> int:
        """Pass over some bytes; return where they begin."""
        start, end = self.offset, self.offset + length
        if end > self.size:
            raise ValueError(f"{what} passes the end of the file")
        if end > _MOST_BYTES:
            raise ValueError(f"{what} makes a header of more than {_MOST_BYTES:,} bytes")
        self.offset = end
        return start


def _parse(path: Path, cursor: _Cursor) -> GGUFFile:
    if cursor.scalar("<I") != gguf.GGUF_MAGIC:
        raise CheckpointError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise CheckpointError(f"{path} is a GGUF file of version {version}; readable: 2 and 3, little-endian")
    tensor_count = cursor.count("tensors", _MOST_TENSORS)
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count("settings", _MOST_SETTINGS)):
        key = _new_name(cursor, metadata)
        metadata[key] = cursor.value(gguf.GGUFValueType(cursor.scalar("<I")))
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= _MOST_ALIGNMENT:
        raise CheckpointError(f"{path} is a damaged GGUF file: general.alignment = {shown(alignment)}")
    listed: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        name = _new_name(cursor, listed)
        listed[name] = _tensor(cursor, name)
    start = -(-cursor.offset // alignment) * alignment
    _check_places(path, listed, start, cursor.size, alignment)
    tensors = {name: dataclasses.replace(info, offset=start + info.offset) for name, info in listed.items()}
    return GGUFFile(path=path, metadata=metadata, tensors=tensors)


def _new_name(cursor: _Cursor, known: Mapping[str, Any]) -> str:
    name = cursor.string()
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"a name of {len(name):,} characters; at most {_LONGEST_NAME:,} are read")
    if name in known:
        raise ValueError(f"{name} is there twice")
    return name


def _tensor(cursor: _Cursor, name: str) -> TensorInfo:
    """Read a tensor's entry; its offset is counted from the first tensor's."""
    dimensions = cursor.scalar("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name} has {dimensions} dimensions; at most {_MOST_DIMENSIONS} are read")
    shape = tuple(cursor.scalar("<Q") for _ in range(dimensions))[::-1]
    kind, offset = gguf.GGMLQuantizationType(cursor.scalar("<I")), cursor.scalar("<Q")
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if (shape[-1] if shape else 1) % block:
        raise ValueError(f"tensor {name} {list(shape)} has rows of no whole number of {kind.name} blocks of {block}")
    return TensorInfo(type=kind, shape=shape, offset=offset, nbytes=math.prod(shape) // block * block_bytes)


def _check_places(path: Path, listed: Mapping[str, TensorInfo], start: int, size: int, alignment: int) -> None:
    """Refuse tensors that pass the end of the file, overlap or leave gaps: each begins where the one before it ends,
    rounded up to the alignment."""
    expected = 0
    for name, info in sorted(listed.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        end = start + info.offset + info.nbytes
        if end > size:
            raise CheckpointError(f"{path} is truncated: {size} bytes, tensor {name} ends at {end}")
        if info.offset != expected:
            raise CheckpointError(
                f"{path} is a damaged GGUF file: tensor {name} begins at {start + info.offset}, and should at "
                f"{start + expected}"
            )
        expected = -(-(info.offset + info.nbytes) // alignment) * alignment
