"""What a stream of text can take."""

from __future__ import annotations

import codecs
from typing import Any


def is_terminal(stream: Any) -> bool:
    """Whether somebody sees a stream; false for what has no `isatty`, as loggers' and notebooks' stand-ins."""
    asked = getattr(stream, "isatty", None)
    return bool(asked is not None and asked())


def takes_all_text(stream: Any) -> bool:
    """Whether a stream's encoding has every character."""
    return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name.startswith("utf")


def show_all(*streams: Any) -> None:
    """Let streams write what their encoding lacks as escapes: nothing that took work ends in an error."""
    for stream in streams:
        if hasattr(stream, "reconfigure") and not takes_all_text(stream):
            stream.reconfigure(errors="backslashreplace")
