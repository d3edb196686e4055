"""Builds the native host-attention library; everything else is declared in pyproject.toml.

The extension is optional: where no C++17 compiler is found the install succeeds and the pure-JAX attention is used.
"""

import importlib.util
from pathlib import Path

from setuptools import Extension, setup

SOURCES = ("handlers", "page_handlers", "attention", "select", "portable", "avx2", "avx512", "avx512_bf16")
HEADERS = (
    *("attention", "convert", "float_math", "handlers", "kernel", "parallel"),
    *("prefetch", "stream", "tile", "vector_avx512"),
)
# GCC's own headers of vector instructions set off -Wuninitialized.
WARNINGS = ("-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi")


def ffi_include_dir() -> str:
    """Return the folder of the XLA FFI headers that jaxlib ships, without importing jaxlib."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        raise RuntimeError("jaxlib is needed to build: install it first or build with isolation")
    return str(Path(spec.origin).parent / "include")


setup(
    ext_modules=[
        Extension(
            "apex_jax.host_offload._native",
            sources=[f"host_offload/native/{name}.cc" for name in SOURCES],
            depends=[f"host_offload/native/{name}.h" for name in HEADERS],
            include_dirs=[ffi_include_dir()],
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-exceptions", *WARNINGS],
            language="c++",
            optional=True,
        )
    ]
)
