"""Streams as programs set them: without `isatty`, or none at all."""

import io
import sys

import pytest

from apex_jax.cli.progress import Progress
from apex_jax.machine.streams import is_terminal, takes_all_text
from apex_jax.progress_bar import Bar


class Lines:
    """What a logging set-up puts in the place of standard error."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_streams_without_isatty(monkeypatch):
    monkeypatch.setattr(sys, "stderr", lines := Lines())
    assert not is_terminal(sys.stderr)
    with Progress(sys.stderr).step("Loading"), Bar(total=2, unit="request") as bar:
        bar.update(2)
    assert "2/2" in lines.text


def test_no_standard_error(monkeypatch):
    """As in a program without a console."""
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(sys.stderr).step("Loading"), Bar(total=2, unit="request") as bar:
        bar.update(2)


@pytest.mark.parametrize(
    ("encoding", "all_of_it"), [("utf-8", True), ("utf-16", True), ("ascii", False), ("cp1252", False)]
)
def test_encodings(encoding, all_of_it):
    assert takes_all_text(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) == all_of_it
    assert takes_all_text(io.StringIO())
