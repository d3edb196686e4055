"""The command, called in this process with its output captured, and models for it."""

import io
import json
from pathlib import Path

import pytest

from apex_jax.cli import main

STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260K"


@pytest.fixture
def stories():
    if not STORIES.is_dir():
        pytest.skip("the shared stories260K model is not beside the repository")
    return STORIES


@pytest.fixture
def command(capsys, monkeypatch):
    """(arguments..., stdin="") -> (exit status, standard output, standard error)."""

    def call(*arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def generate(command):
    """(arguments..., stdin="") -> the JSON object of `apex-jax generate --json`."""

    def call(*arguments, stdin=""):
        status, out, err = command("generate", "--json", *arguments, stdin=stdin)
        assert status == 0, err
        return json.loads(out)

    return call


TINY = ("--model", "tinyllama-1.1b", "--load-format", "dummy", "--num-layers", "1", "--device-kv-tokens", "256")
"""A model that every machine has."""


@pytest.fixture
def tiny():
    return TINY
