"""Tensors of a Hugging Face folder: safetensors, one file or sharded, mapped into memory one tensor at a time.

The format (a length, a JSON header, raw bytes) is read here rather than through the safetensors package because that
package's numpy reader has no bfloat16 and keeps a whole file mapped, which counts against the process's memory.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import CheckpointError
from .hf_names import Shape

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

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
    shape: Shape
    dtype: np.dtype


class SafetensorsSource:
    """Reads the tensors of a folder by name.

    Raises:
        CheckpointError: no safetensors file, or one that is truncated or malformed.
    """

    def __init__(self, folder: Path):
        self._entries: dict[str, _Entry] = {}
        for file in _files(folder):
            self._entries |= _read_header(file)

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
        index = read_json(folder / INDEX)
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise CheckpointError(f"{folder / INDEX} has no 'weight_map' from tensor names to files")
        files = [folder / shard for shard in sorted(set(shards.values()))]
        if absent := [file.name for file in files if not file.is_file()]:
            raise CheckpointError(f"{folder} lacks files its {INDEX} names: {', '.join(absent)}")
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}; other weight formats are not read")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, holds {type(content).__name__}")
    return content


def _read_header(file: Path) -> dict[str, _Entry]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{file} is truncated or no safetensors file: {size} bytes, header of {length}")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(f"{file} has a damaged header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a damaged header: no JSON object")
    header.pop("__metadata__", None)
    return {name: _entry(file, size, 8 + length, name, fields) for name, fields in header.items()}


def _entry(file: Path, size: int, start: int, name: str, fields: Any) -> _Entry:
    try:
        label, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has a damaged header at tensor {name}") from error
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise CheckpointError(f"{file} has a damaged header at tensor {name}: shape {shape}, bytes {begin} to {end}")
    if label not in _DTYPES:
        raise CheckpointError(f"{file}: tensor {name} has dtype {label}; readable: {', '.join(_DTYPES)}")
    dtype = _DTYPES[label]
    if start + end > size:
        raise CheckpointError(f"{file} is truncated: {size} bytes, tensor {name} ends at {start + end}")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{file} has a damaged header: tensor {name} {list(shape)} {label} in {end - begin} bytes"
        )
    return _Entry(file=file, offset=start + begin, shape=shape, dtype=dtype)
