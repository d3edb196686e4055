"""Strictness for every test (no silent broadcasting of ranks or promotion of number types), programs that are compiled
once for all of them, the shared models and data, a toy machine, and the command."""

import hashlib
import io
import json
import os
from pathlib import Path

import jax
import pytest

from apex_jax.machine.processor import instructions

ROOT = Path(__file__).parents[1]


# Engines of the same shapes are made again and again, in processes of their own too. What was compiled for one
# processor may not run on another.
COMPILED = ROOT / "build" / "compiled" / hashlib.sha256(instructions().encode()).hexdigest()[:12]
for name, value in (("jax_compilation_cache_dir", str(COMPILED)), ("jax_persistent_cache_min_compile_time_secs", 0)):
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

TOY = {
    "devices": [
        {
            "name": "toy",
            "memory_gb": 1,
            "weights_gb_per_s": 0.1,
            "attention_gb_per_s": 1,
            "tflops": 1,
            "link_gb_per_s": 1,
        }
    ],
    "models": [
        {
            "name": "toy",
            "num_layers": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "intermediate_size": 128,
            "vocab_size": 128,
        }
    ],
}


def beside(*names):
    """Return one of the folders that several repositories share, or skip the test."""
    folder = ROOT.parent.joinpath("shared", *names)
    if not folder.is_dir():
        pytest.skip(f"{'/'.join(('shared', *names))} is not beside the repository")
    return folder


@pytest.fixture(scope="session")
def stories():
    """A small model that tells stories, with one that it must tell."""
    return beside("models", "stories260K")


@pytest.fixture(scope="session")
def anchors():
    """The published sweeps."""
    return beside("anchors")


@pytest.fixture(scope="session")
def recorded_loads():
    """What real services were asked."""
    return beside("data")


@pytest.fixture
def toy_hardware(tmp_path):
    """A hardware file that describes the toy machine."""
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY), encoding="utf-8")
    return path


@pytest.fixture
def command(capsys, monkeypatch):
    """(arguments..., stdin="") -> (exit status, standard output, standard error) of a command in this process."""
    from apex_jax.cli import main

    def call(*arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
