"""What the commands that draw have in common: where the picture goes, and what is said if it cannot be drawn."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.whole_file import whole_file
from .errors import UserError, as_user_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")


def add_output_argument(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add `-o`."""
    parser.add_argument(
        "-o",
        "--output",
        type=picture,
        required=required,
        metavar="FILE",
        help="picture to write; .png, .svg or .pdf says which kind",
    )


def need_matplotlib() -> None:
    """Say how matplotlib is installed where it is missing, before any work is done.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError("drawing needs matplotlib, which is not installed: pip install 'apex-jax[plot]'")


def write(figure: Figure, path: Path) -> None:
    """Write a figure and say where it is.

    Raises:
        UserError: the file cannot be written.
    """
    with as_user_errors(OSError), whole_file(path, binary=True) as file:
        figure.savefig(file, format=path.suffix[1:])
    print(f"wrote {path}")


def picture(text: str) -> Path:
    """Read the name of a picture to write; its folder has to be there, since drawing may come after long work."""
    path = Path(text)
    if path.suffix not in _SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in {', '.join(_SUFFIXES[:-1])} nor in {_SUFFIXES[-1]}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into")
    return path
