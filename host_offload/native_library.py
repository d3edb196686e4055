"""Loads the compiled host attention and registers it with JAX."""

import ctypes
import functools
import importlib.machinery
import logging
from pathlib import Path

import jax

INSTRUCTIONS = ("portable", "avx2", "avx512", "avx512_bf16")
ATTEND = "apex_decode_attention"
APPEND_ATTEND = "apex_append_decode_attention"
PACKED_ATTEND = "apex_packed_decode_attention"
READ_STREAM = "apex_read_stream"
READ_PAGES = "apex_read_pages"
READ_PAGES_INTO = "apex_read_pages_into"
WRITE_PAGES = "apex_write_pages"

_logger = logging.getLogger(__name__)


def _library_path() -> Path | None:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_native{suffix}"
        if path.is_file():
            return path
    return None


@functools.cache
def load() -> ctypes.CDLL | None:
    """Return the native library with its functions registered for the CPU platform, or None where it was not built.

    Says once, as a warning of this module's logger, that the pure-JAX attention is used instead.

    Raises:
        OSError: the library is there but cannot be loaded.
    """
    path = _library_path()
    if path is None:
        _logger.warning(
            "apex_jax was installed without its native host attention (no C++17 compiler was found): "
            "the pure-JAX attention is used, which is several times slower"
        )
        return None
    library = ctypes.CDLL(str(path))
    handlers = {
        ATTEND: library.ApexDecodeAttention,
        APPEND_ATTEND: library.ApexAppendDecodeAttention,
        PACKED_ATTEND: library.ApexPackedDecodeAttention,
        READ_STREAM: library.ApexReadStream,
        READ_PAGES: library.ApexReadPages,
        READ_PAGES_INTO: library.ApexReadPagesInto,
        WRITE_PAGES: library.ApexWritePages,
    }
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    return library


def machine_instructions() -> str | None:
    """Return the best instruction set that the native kernel can use here, or None without a native library."""
    library = load()
    return None if library is None else INSTRUCTIONS[library.ApexMachineInstructions()]
