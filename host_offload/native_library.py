"""Loads the compiled host attention and registers it with JAX."""

import ctypes
import functools
import importlib.machinery
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def _handlers(library: ctypes.CDLL) -> dict[str, Any]:
    return {
        ATTEND: library.ApexDecodeAttention,
        APPEND_ATTEND: library.ApexAppendDecodeAttention,
        PACKED_ATTEND: library.ApexPackedDecodeAttention,
        READ_STREAM: library.ApexReadStream,
        READ_PAGES: library.ApexReadPages,
        READ_PAGES_INTO: library.ApexReadPagesInto,
        WRITE_PAGES: library.ApexWritePages,
    }


@functools.cache
def open_library() -> tuple[ctypes.CDLL | None, dict[str, Any], str]:
    """Return the library, its handlers, and why there are none."""
    path = _library_path()
    if path is None:
        others = sorted(file.name for file in Path(__file__).parent.glob("_native*") if file.suffix in (".so", ".pyd"))
        if others:
            expected = importlib.machinery.EXTENSION_SUFFIXES[0]
            return None, {}, f"{', '.join(others)} was built for another Python than this one (_native{expected})"
        return None, {}, "it could not be built when apex_jax was installed, which takes a C++17 compiler"
    try:
        library = ctypes.CDLL(str(path))
        return library, _handlers(library), ""
    except (OSError, AttributeError) as error:
        return None, {}, f"{path} cannot be loaded ({error}); install apex_jax again"


@functools.cache
def load() -> ctypes.CDLL | None:
    """Return the native library with its functions registered for the CPU platform, or None where it cannot be used.

    Says once, as a warning of this module's logger, that the pure-JAX attention is used instead, and why.
    """
    library, handlers, why = open_library()
    if library is None:
        _logger.warning(
            "apex_jax runs without its native host attention: %s. "
            "The pure-JAX attention is used, which is several times slower, and far slower where it appends to a large "
            "bfloat16 cache: each append passes over the whole of it",
            why,
        )
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    return library


def absence() -> str:
    """Return why the native library cannot be used, or an empty string where it can."""
    return open_library()[2]


def function(target: str, results: Any, *, aliases: dict[int, int], no_derivative: str, **attributes: Any) -> Callable:
    """Return a function of the loaded library, to be called with arrays.

    Under `jax.vmap` it takes the examples one after the other.

    Args:
        target: its registered name.
        results: shapes and types of what it returns.
        aliases: arguments whose memory a result takes: index of the argument, index of the result.
        no_derivative: the message of the `NotImplementedError` that refuses to differentiate it.
        attributes: its attributes.
    """
    kernel = jax.ffi.ffi_call(target, results, vmap_method="sequential", input_output_aliases=aliases)

    @jax.custom_jvp
    def call(*arguments: jax.Array) -> Any:
        return kernel(*arguments, **attributes)

    @call.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(no_derivative)

    return call


def machine_instructions() -> str | None:
    """Return the best instruction set that the native kernel can use here, or None without a native library."""
    library = load()
    return None if library is None else INSTRUCTIONS[library.ApexMachineInstructions()]
