"""Builds the native host attention; everything else is declared in pyproject.toml.

The library is loaded with ctypes and knows nothing of Python, so that one wheel serves every Python of a platform.
Where there is no compiler, or with APEX_JAX_NATIVE=0, the wheel is for any platform, and attention in plain JAX stands
in. A compiler that fails stops the build: pip shows why, and keeps no wheel that lacks what its name promises.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

SOURCES = ("handlers", "page_handlers", "attention", "select", "portable", "avx2", "avx512", "avx512_bf16")
HEADERS = (
    *("attention", "convert", "float_math", "handlers", "kernel", "parallel"),
    *("prefetch", "stream", "tile", "vector_avx512"),
)
# GCC's own headers of vector instructions set off -Wuninitialized.
WARNINGS = ("-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi")
SWITCH = "APEX_JAX_NATIVE"


class BuildNative(build_ext):
    """Names the library alike for every Python, and says how to do without it where it cannot be built."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{os.path.join(*fullname.split('.'))}.so"

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except CCompilerError as error:
            raise type(error)(
                f"{error}\napex_jax: the native host attention could not be built; it takes a C++17 compiler. "
                f"To install without it, set {SWITCH}=0 in the environment"
            ) from error


class BuildWheel(bdist_wheel):
    """A wheel with the library is for any Python 3 of its platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def native_wanted() -> bool:
    """Return whether to build the library; says why not."""
    asked = os.environ.get(SWITCH, "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"{SWITCH} is {asked!r}; 0 leaves the native host attention out, 1 insists on it")
    if asked:
        return asked == "1"
    # Only now: setuptools has put its own in the place of what Python 3.12 no longer has.
    from distutils.ccompiler import new_compiler
    from distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    (name, *_) = compiler.compiler_so_cxx
    if shutil.which(name) or {"CC", "CXX"} & os.environ.keys():
        return True
    sys.stderr.write(
        f"apex_jax: WARNING: there is no C++ compiler ({name}): attention on the host will be in plain JAX, several "
        "times slower. Install one, then this package again with pip's --no-cache-dir\n"
    )
    return False


def ffi_include_dir() -> str:
    """Return the folder of the XLA FFI headers that jaxlib ships, without importing jaxlib."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        raise RuntimeError("jaxlib is needed to build: install it first or build with isolation")
    return str(Path(spec.origin).parent / "include")


def native() -> Extension:
    """Return what to build."""
    return Extension(
        "apex_jax.host_offload._native",
        sources=[f"host_offload/native/{name}.cc" for name in SOURCES],
        depends=[f"host_offload/native/{name}.h" for name in HEADERS],
        include_dirs=[ffi_include_dir()],
        extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-exceptions", *WARNINGS],
        language="c++",
    )


setup(
    cmdclass={"build_ext": BuildNative, "bdist_wheel": BuildWheel},
    ext_modules=[native()] if native_wanted() else [],
)
