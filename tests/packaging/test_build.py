"""Wheels with and without a compiler, and the source distribution."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("apex_jax", "models", "host_offload", "scheduler")
BESIDE = (".ci", "benchmarks", "docs", "scripts", "tests")
FILES = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("pyproject.toml", "setup.py"),
)
NATIVE = "apex_jax/host_offload/_native.so"
COMPILERS = ("c++", "g++", "clang++")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a build reads, so that nothing of an earlier build is found and none is left behind."""
    copy = tmp_path / "checkout"
    unwanted = shutil.ignore_patterns("*.so", "__pycache__", "build", ".hypothesis")
    for folder in (*SOURCES, *BESIDE):
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    for file in FILES:
        shutil.copy(ROOT / file, copy)
    return copy


def call_backend(checkout, hook, **environment):
    """Run a hook of the build backend without isolation; return the run, and the archive that it made or None."""
    target = checkout.parent / hook
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
    return run, next(target.iterdir(), None)


@pytest.fixture
def source_distribution(checkout):
    run, archive = call_backend(checkout, "build_sdist")
    assert run.returncode == 0, run.stderr
    return archive


def expected_modules():
    mapped = {"apex_jax": "apex_jax", **{folder: f"apex_jax/{folder}" for folder in SOURCES[1:]}}
    return {
        f"{mapped[folder]}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder in SOURCES
        for file in (ROOT / folder).rglob("*.py")
    }


def pip(*arguments, **environment):
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture
def environment(tmp_path):
    """A fresh environment without pip, which finds what this one has but for this package."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    inner = {key: Path(sysconfig.get_path(key, vars={"base": str(folder)})) for key in ("purelib", "scripts")}
    (inner["purelib"] / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    def call(program, *arguments):
        run = subprocess.run(
            [inner["scripts"] / program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return run

    call.python = inner["scripts"] / "python"
    call.packages = inner["purelib"]
    return call


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler here")
def test_a_wheel_of_the_source_distribution_runs_in_a_fresh_environment(source_distribution, environment, tmp_path):
    compiler = next(filter(None, map(shutil.which, COMPILERS)))
    # It need not be fast here: without optimisation it is there in a fifth of the time.
    quick = tmp_path / "c++"
    quick.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n', encoding="utf-8")
    quick.chmod(0o755)
    offline = ("--no-deps", "--no-index", "--quiet")
    target = tmp_path / "wheels"
    pip("wheel", *offline, "--no-build-isolation", "-w", target, source_distribution, CC=str(quick), CXX=str(quick))
    (archive,) = target.iterdir()
    assert re.fullmatch(r"apex_jax-[\d.]+-py3-none-(linux|macosx)_\w+\.whl", archive.name)
    with zipfile.ZipFile(archive) as wheel:
        names = set(wheel.namelist())
    assert NATIVE in names
    assert {name for name in names if name.endswith(".py")} == expected_modules()
    assert "apex_jax/py.typed" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    outside = {name for name in names if not name.startswith("apex_jax/") and ".dist-info/" not in name}
    assert not outside
    pip("--python", environment.python, "install", *offline, archive)
    ran = environment("python", "-c", ATTENTION, str(environment.packages), "native")
    assert "native host attention" not in ran.stderr
    assert "attention  native" in environment("apex-jax", "info").stdout


ATTENTION = """
import logging, sys
import jax.numpy as jnp, numpy as np
import apex_jax
from apex_jax.cli import main
from apex_jax.host_offload import decode_attention, machine_instructions

assert apex_jax.__file__.startswith(sys.argv[1]), apex_jax.__file__
assert (machine_instructions() is None) == (sys.argv[2] == "jax")
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


@pytest.fixture
def without_compilers(tmp_path):
    """Variables of an environment that has no compiler."""
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    return {"PATH": str(nothing)}


@pytest.mark.slow
def test_without_a_compiler_there_is_a_wheel_for_everyone(checkout, environment, without_compilers):
    run, archive = call_backend(checkout, "build_wheel", **without_compilers)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("apex_jax: WARNING: there is no C++ compiler") == 1
    assert archive.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(archive) as wheel:
        assert NATIVE not in wheel.namelist()
    pip("--python", environment.python, "install", "--no-deps", "--no-index", "--quiet", archive)
    ran = environment("python", "-c", ATTENTION, str(environment.packages), "jax")
    assert ran.stderr.count("without its native host attention: it was installed without a C++17 compiler") == 1
    assert "plain JAX, since the native kernel cannot be used: it was installed without a C++17 compiler" in ran.stdout


def test_a_compiler_that_fails_stops_the_build(checkout, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'this compiler is broken' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    for compiler in (broken, tmp_path / "no-such-compiler"):
        run, archive = call_backend(checkout, "build_wheel", CC=str(compiler), CXX=str(compiler))
        assert run.returncode != 0
        assert archive is None
        assert "apex_jax: the native host attention could not be built; it takes a C++17 compiler" in run.stderr
        assert "set APEX_JAX_NATIVE=0" in run.stderr
        shutil.rmtree(tmp_path / "build_wheel")


def test_the_native_library_can_be_left_out_or_insisted_on(checkout, without_compilers):
    run, archive = call_backend(checkout, "build_wheel", APEX_JAX_NATIVE="0")
    assert run.returncode == 0, run.stderr
    assert "WARNING: there is no C++ compiler" not in run.stderr
    assert archive.name.endswith("-py3-none-any.whl")
    shutil.rmtree(archive.parent)
    run, archive = call_backend(checkout, "build_wheel", APEX_JAX_NATIVE="1", **without_compilers)
    assert (run.returncode, archive) == (1, None)
    assert "could not be built" in run.stderr
    shutil.rmtree(checkout.parent / "build_wheel")
    run, archive = call_backend(checkout, "build_wheel", APEX_JAX_NATIVE="perhaps")
    assert (run.returncode, archive) == (1, None)
    assert "APEX_JAX_NATIVE is 'perhaps'; 0 leaves" in run.stderr


def test_source_distribution_holds_what_building_testing_and_reading_need(source_distribution):
    with tarfile.open(source_distribution) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if "." in Path(name).name}
    unwanted = {"__pycache__", "build", ".hypothesis"}
    here = {
        file.relative_to(ROOT).as_posix()
        for folder in (*SOURCES, *BESIDE)
        for file in (ROOT / folder).rglob("*.*")
        if file.is_file() and not unwanted & set(file.parts) and file.suffix != ".so"
    }
    assert here <= names
    assert set(FILES) - {"Makefile", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
