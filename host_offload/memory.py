"""How much memory this process may still take."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that new allocations may take without swapping.

    The least of what the machine has (MemAvailable of Linux, elsewhere all of its memory) and of what is left under
    each memory limit of the control groups that this process is in. Where the system tells nothing, `sys.maxsize`.

    Args:
        root: where the files of the system are found.
    """
    return min([_machine(root), *_control_groups(root)])


def _machine(root: Path) -> int:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize


def _control_groups(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(root / "sys/fs/cgroup/memory", path, *names)


def _left(mount: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """Yield what is left under the limit of each group from `path` up; a container may see only the uppermost."""
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        allowed, used = _lines(folder / limit), _lines(folder / usage)
        if allowed and used and allowed[0] != "max":
            # Files in the page cache count as used, but are given up when memory is needed.
            files = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == reclaimable]
            yield max(0, int(allowed[0]) - int(used[0]) + sum(files))
        if folder == mount:
            return


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, none where it is not there or may not be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
