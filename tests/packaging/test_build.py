"""Wheels with and without a compiler, and the source distribution."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "apex_jax",
    "apex_jax/cli",
    "apex_jax/reproduce",
    "apex_jax/models",
    "apex_jax/host_offload",
    "apex_jax/scheduler",
)
SOURCES = ("apex_jax", "models", "host_offload", "scheduler")
COMPILERS = ("c++", "g++", "clang++")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a build reads, so that nothing of an earlier build is found and none is left behind."""
    copy = tmp_path / "checkout"
    unwanted = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    return copy


def build(checkout, hook, **environment):
    """Run a hook of the build backend without isolation; return the archive it made."""
    target = checkout.parent / "built"
    target.mkdir()
    script = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", script, str(target)],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (archive,) = target.iterdir()
    return archive


def expected_modules():
    mapped = {"apex_jax": "apex_jax", **{folder: f"apex_jax/{folder}" for folder in SOURCES[1:]}}
    return {
        f"{mapped[folder]}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder in SOURCES
        for file in (ROOT / folder).rglob("*.py")
    }


def is_native(name):
    return name.startswith("apex_jax/host_offload/_native") and name.endswith((".so", ".pyd"))


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler here")
def test_wheel_with_a_compiler(checkout, tmp_path):
    compiler = next(filter(None, map(shutil.which, COMPILERS)))
    # What is in the wheel is looked at, not run: without optimisation it is there in a fifth of the time.
    quick = tmp_path / "c++"
    quick.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n', encoding="utf-8")
    quick.chmod(0o755)
    with zipfile.ZipFile(build(checkout, "build_wheel", CC=str(quick), CXX=str(quick))) as wheel:
        names = set(wheel.namelist())
    assert [name for name in names if is_native(name)], "the wheel holds no native library"
    assert {name for name in names if name.endswith(".py")} == expected_modules()
    assert "apex_jax/py.typed" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    outside = {name for name in names if not name.startswith("apex_jax/") and ".dist-info/" not in name}
    assert not outside


ATTENTION = """
import logging, sys
import jax.numpy as jnp, numpy as np
import apex_jax
from apex_jax.cli import main
from apex_jax.host_offload import decode_attention, machine_instructions

assert apex_jax.__file__.startswith(sys.argv[1]), apex_jax.__file__
assert machine_instructions() is None
rng = np.random.default_rng(1)
q, kv = rng.standard_normal((2, 4, 16)), rng.standard_normal((3, 2, 2, 16, 16))
table, lengths = np.array([[2, 0], [1, 1]]), np.array([20, 5])
out, _, _ = decode_attention(
    jnp.asarray(q, jnp.float32), jnp.asarray(kv, jnp.float32),
    jnp.asarray(table, jnp.int32), jnp.asarray(lengths, jnp.int32),
)
for row in range(2):
    for head in range(4):
        tiles = kv[table[row], head // 2]
        keys, values = (tiles[:, part].reshape(-1, 16)[: lengths[row]] for part in (0, 1))
        weight = np.exp(keys @ q[row, head] / 4)
        np.testing.assert_allclose(out[row, head], weight @ values / weight.sum(), atol=1e-5)
assert main(["info"]) == 0
"""


@pytest.mark.slow
def test_install_without_a_compiler_falls_back_and_says_so_once(checkout, tmp_path):
    nothing = str(tmp_path / "no-such-compiler")
    archive = build(checkout, "build_wheel", CC=nothing, CXX=nothing)
    installed = tmp_path / "installed"
    with zipfile.ZipFile(archive) as wheel:
        assert not [name for name in wheel.namelist() if is_native(name)]
        wheel.extractall(installed)
    run = subprocess.run(
        [sys.executable, "-c", ATTENTION, str(installed)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("without its native host attention") == 1
    assert "plain JAX: the native kernel was not built" in run.stdout


def test_source_distribution_holds_what_a_build_needs(checkout):
    with tarfile.open(build(checkout, "build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {f"host_offload/native/{file.name}" for file in (ROOT / "host_offload" / "native").iterdir()}
    assert native <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names
    assert {f"{folder}/__init__.py" for folder in SOURCES} <= names
