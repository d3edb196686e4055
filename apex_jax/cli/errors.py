"""Errors that the person at the terminal can put right."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

USER_ERROR_STATUS = 2
"""Exit status of a command that was given something it cannot use; argparse's own."""


class UserError(Exception):
    """Ends the command with one line on standard error and exit status 2, without a traceback."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line: the usage of a command with forty options hides them."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR_STATUS, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


@contextmanager
def as_user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these kinds into `UserError`s, their message on one line.

    Wrap only what checks or opens things that the user named: elsewhere the same kinds are defects, whose traceback is
    wanted.
    """
    try:
        yield
    except kinds as error:
        raise UserError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
