"""Files that are there whole or not at all, whoever else writes them, and whenever a writer is killed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_ABANDONED_SECONDS = 3600.0
"""Nobody takes an hour between two writes to a file."""

_DESCRIPTORS = "/proc/self/fd"


@contextmanager
def whole_file(path: str | os.PathLike[str], *, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when the context ends; after an exception nothing has changed.

    What is written has no name, where the file system can do that, or else a hidden one beside `path` that no other
    writer has; it is on the disk before it is moved. What a writer that was killed has left under such a name is
    removed an hour later, by the next one. Links are followed. What is there and no regular file, such as a pipe or
    /dev/null, is written to as it is.

    Args:
        path: the file; its folder has to be there.
        binary: take bytes; otherwise text, in UTF-8 and with line ends as they are given.

    Raises:
        OSError: it cannot be written.
    """
    target, beside = _places(path)
    how: dict[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8", "newline": ""}
    if target.exists() and not target.is_file():
        with target.open(**how) as file:
            yield file
        return
    descriptor = _create(path, beside)
    try:
        with open(descriptor, **how) as file:
            if target.exists():
                os.fchmod(descriptor, target.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(descriptor)
            now = os.fstat(descriptor).st_mtime
            if not beside.exists():
                # With a descriptor of a folder, which an absolute path makes no use of, Python follows the link.
                os.link(f"{_DESCRIPTORS}/{descriptor}", beside, src_dir_fd=descriptor)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    _remove_abandoned(target, now)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Make sure that `whole_file` can write a file, before there is anything to write; leaves nothing behind.

    Raises:
        OSError: it cannot.
    """
    target, beside = _places(path)
    if target.exists() and not target.is_file():
        os.close(os.open(path, os.O_WRONLY))
        return
    os.close(_create(path, beside))
    beside.unlink(missing_ok=True)


def _places(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return where a file really is, and a name beside it that nobody else has."""
    target = Path(os.path.realpath(path))
    return target, target.with_name(f"{_prefix(target)}{os.getpid()}-{secrets.token_hex(8)}.part")


def _prefix(target: Path) -> str:
    return f".{target.name}."


def _create(path: str | os.PathLike[str], beside: Path) -> int:
    """Open a file that has no name yet, so that nothing is left of it when its writer is killed; else one with a name.

    As `open` does, for others too, as far as the user's mask says. Errors name the file that was asked for.
    """
    try:
        if hasattr(os, "O_TMPFILE") and os.path.isdir(_DESCRIPTORS):
            with suppress(OSError):
                return os.open(beside.parent, os.O_WRONLY | os.O_TMPFILE, 0o666)
        return os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _remove_abandoned(target: Path, now: float) -> None:
    """Remove what killed writers of a file left beside it, by the clock of the disk: several machines may share it."""
    for other in target.parent.iterdir():
        if other.name.startswith(_prefix(target)) and other.suffix == ".part":
            # Another writer may be faster.
            with suppress(FileNotFoundError):
                if now - other.stat().st_mtime > _ABANDONED_SECONDS:
                    other.unlink()
