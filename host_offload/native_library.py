"""Loads the compiled host attention and registers it with JAX."""

import ctypes
import functools
import logging
import re
from collections.abc import Callable
from importlib.metadata import version
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
LIBRARY = Path(__file__).parent / "_native.so"
AGAIN = "install apex_jax again, with pip's --force-reinstall --no-deps --no-cache-dir"

_logger = logging.getLogger(__name__)


def jaxlib_ffi_version() -> tuple[int, int] | None:
    """Return the version (major, minor) of the running jaxlib's XLA FFI, or None where its header does not say."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not header.is_file():
        return None
    found = dict(re.findall(r"^#define XLA_FFI_API_(MAJOR|MINOR) (\d+)$", header.read_text("utf-8"), re.MULTILINE))
    return (int(found["MAJOR"]), int(found["MINOR"])) if found.keys() == {"MAJOR", "MINOR"} else None


def _mismatch(library: ctypes.CDLL) -> str:
    """Return why the running jaxlib does not take the library's handlers, or an empty string where it does.

    Registering handlers of a newer interface would end JAX's CPU backend.
    """
    built = divmod(library.ApexFfiVersion(), 1 << 16)
    running = jaxlib_ffi_version()
    if running is None:
        return f"jaxlib {version('jaxlib')} does not say which version of the XLA FFI it has, and {LIBRARY} needs one"
    if built[0] == running[0] and built[1] <= running[1]:
        return ""
    ours, theirs = (".".join(map(str, each)) for each in (built, running))
    return f"{LIBRARY} was built for XLA FFI {ours}, and jaxlib {version('jaxlib')} has {theirs}; {AGAIN}"


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
    if not LIBRARY.is_file():
        return None, {}, f"it was installed without a C++17 compiler, or with APEX_JAX_NATIVE=0. With one, {AGAIN}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        handlers, why = _handlers(library), _mismatch(library)
    except (OSError, AttributeError) as error:
        return None, {}, f"{LIBRARY} cannot be loaded ({error}); {AGAIN}"
    return (None, {}, why) if why else (library, handlers, "")


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
