"""The host processor: its name and the cores that this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """Return the cores that this process may use."""
    # Where the system has no affinity, every core may be used.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _described(*fields: str) -> str:
    """Return what the system says of its processors under the first of these fields, or an empty string."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(fields):
                return line.partition(":")[2].strip()
    return ""


def processor_name() -> str:
    """Return the processor's own name."""
    return _described("model name") or platform.processor() or platform.machine()


def instructions() -> str:
    """Return the words that say what this processor can do; its architecture where the system has none."""
    return _described("flags", "Features") or f"{platform.machine()} {platform.processor()}"


def processor_and_cores() -> str:
    """Return both in words: what a measurement of the host is valid for."""
    return f"{processor_name()}, {usable_cores()} cores"
