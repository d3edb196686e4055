"""Makes the helpers of these tests importable: pytest's importlib mode leaves their folder out of the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import pytest


@pytest.fixture
def command(capsys):
    """command(*arguments) -> (exit status, standard output, standard error) of a command in this process."""
    from apex_jax.cli import main

    def call(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
