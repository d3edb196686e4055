"""The header of a GGUF file: metadata and where each tensor lies.

The `gguf` package names the types and knows their sizes; the header itself is read here, because the package's reader
maps every string of a vocabulary as an array of its own, which takes seconds, and takes truncated files for granted.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

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
        CheckpointError: not a GGUF file, truncated, or of a version or type that is not known.
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
    """Reads values one after another; every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.offset = 0
        self.size = len(data)

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self.offset)
        self.offset += struct.calcsize(form)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        end = self.offset + length
        if end > self.size:
            raise ValueError(f"a string of {length} bytes passes the end of the file")
        text = self._data[self.offset : end].decode("utf-8", errors="replace")
        self.offset = end
        return text

    def value(self, kind: gguf.GGUFValueType) -> Any:
        if kind == gguf.GGUFValueType.STRING:
            return self.string()
        if kind == gguf.GGUFValueType.ARRAY:
            return self.array()
        return self.scalar(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind, count = gguf.GGUFValueType(self.scalar("<I")), self.scalar("<Q")
        if count > self.size:
            raise ValueError(f"an array of {count} values passes the end of the file")
        if kind not in _SCALARS:
            return [self.value(kind) for _ in range(count)]
        form = f"<{count}{_SCALARS[kind][1]}"
        values = struct.unpack_from(form, self._data, self.offset)
        self.offset += struct.calcsize(form)
        return list(values)


def _parse(path: Path, cursor: _Cursor) -> GGUFFile:
    if cursor.scalar("<I") != gguf.GGUF_MAGIC:
        raise CheckpointError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise CheckpointError(f"{path} is a GGUF file of version {version}; readable: 2 and 3, little-endian")
    tensor_count, metadata_count = cursor.scalar("<Q"), cursor.scalar("<Q")
    metadata = {}
    for _ in range(metadata_count):
        key = cursor.string()
        metadata[key] = cursor.value(gguf.GGUFValueType(cursor.scalar("<I")))
    listed = []
    for _ in range(tensor_count):
        name, dimensions = cursor.string(), cursor.scalar("<I")
        shape = tuple(cursor.scalar("<Q") for _ in range(dimensions))[::-1]
        listed.append((name, shape, gguf.GGMLQuantizationType(cursor.scalar("<I")), cursor.scalar("<Q")))

    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError(f"{path} is a damaged GGUF file: general.alignment = {alignment!r}")
    start = -(-cursor.offset // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in listed:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        nbytes = math.prod(shape) // block * block_bytes
        if start + offset + nbytes > cursor.size:
            raise CheckpointError(
                f"{path} is truncated: {cursor.size} bytes, tensor {name} ends at {start + offset + nbytes}"
            )
        tensors[name] = TensorInfo(type=kind, shape=shape, offset=start + offset, nbytes=nbytes)
    return GGUFFile(path=path, metadata=metadata, tensors=tensors)
