"""What `apex-jax generate` gives, and a model for it."""

import json

import pytest


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
