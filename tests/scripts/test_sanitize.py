"""The program that sanitizers run: it stays in step with the kernel that it drives."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "host_offload" / "native"
COMPILER = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


def test_the_program_compiles():
    source = ROOT / "tests" / "host_offload" / "native" / "stress.cc"
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-Wno-psabi", f"-I{NATIVE}"]
    done = subprocess.run([COMPILER, *flags, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_source_without_python_is_built():
    """All but the entry points, which need XLA's headers."""
    script = (ROOT / "scripts" / "sanitize.sh").read_text(encoding="utf-8")
    (line,) = (line for line in script.splitlines() if line.startswith("sources=(attention"))
    built = set(line[len("sources=(") : -1].split())
    assert built == {file.stem for file in NATIVE.glob("*.cc")} - {"handlers", "page_handlers"}
