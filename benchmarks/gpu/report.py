"""What a section has found: tables in a file, whole after every row, and as text."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Cell = str | int | float | bool | None


class Report:
    """Tables and failures of one section.

    Args:
        path: JSON file, rewritten after every change.
        seconds: time that the section has.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._end = time.monotonic() + seconds
        self._tables: list[dict[str, Any]] = []
        self._failures: list[str] = []
        self._facts: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds that the section still has."""
        return self._end - time.monotonic()

    def table(self, title: str, *columns: str) -> Table:
        """Begin a table."""
        self._tables.append({"title": title, "columns": columns, "rows": []})
        return Table(self, self._tables[-1])

    def fact(self, name: str, value: Any) -> None:
        """Note a number that later sections take up."""
        self._facts[name] = value
        self.save()

    def known(self, name: str, default: Any) -> Any:
        """Return a number that has been noted."""
        return self._facts.get(name, default)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Make a failure within a line of the report, and go on after it."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            # What the engine raises for a request names what has happened as its cause.
            first = error.__cause__ or error
            lines = str(first).strip().splitlines() or [""]
            self.fail(f"{what}: {type(first).__name__}: {lines[0][:300]}")

    def fail(self, line: str) -> None:
        """Note what has failed or was left out, and why."""
        self._failures.append(line)
        self.save()

    def save(self) -> None:
        unfinished = self._path.with_suffix(".part")
        content = {"tables": self._tables, "failures": self._failures, "facts": self._facts}
        unfinished.write_text(json.dumps(content, indent=1))
        unfinished.replace(self._path)


class Table:
    """One table of a report."""

    def __init__(self, report: Report, content: dict[str, Any]) -> None:
        self._report = report
        self._content = content

    def add(self, *cells: Cell) -> None:
        """Add a row.

        Raises:
            ValueError: it has not as many cells as there are columns.
        """
        columns = self._content["columns"]
        if len(cells) != len(columns):
            raise ValueError(f"{len(cells)} cells {cells} for the columns {columns}")
        self._content["rows"].append(cells)
        self._report.save()


def open_report() -> tuple[Report, argparse.Namespace]:
    """Return the report and the arguments of a section's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder of all sections")
    parser.add_argument("--name", required=True, help="of the section")
    parser.add_argument("--seconds", type=float, required=True, help="time that it has")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that everything runs")
    args = parser.parse_args()
    return Report(args.out / f"{args.name}.json", args.seconds), args


def facts_of(folder: Path, name: str) -> dict[str, Any]:
    """Return what an earlier section has noted; nothing if it did not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text())["facts"] if path.is_file() else {}


def as_text(section: dict[str, Any]) -> str:
    """Return a section's content for people."""
    parts = []
    for table in section.get("tables", ()):
        parts.append("\n".join([f"  {table['title']}", *_lines(table["columns"], table["rows"])]))
    if section.get("failures"):
        parts.append("\n".join(["  failed or left out", *(f"    {line}" for line in section["failures"])]))
    return "\n\n".join(parts)


def _lines(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    texts = [list(columns), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    numeric = [bool(rows) and all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    for line in texts:
        cells = [
            text.rjust(w) if right else text.ljust(w) for text, w, right in zip(line, widths, numeric, strict=True)
        ]
        yield f"    {'  '.join(cells)}".rstrip()


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        small = cell and abs(cell) < 1e-3
        return f"{cell:.1e}" if small else f"{cell:.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
