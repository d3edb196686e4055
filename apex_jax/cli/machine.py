"""What this machine is: facts for `apex-jax info` and for summaries."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Host:
    """The host processor and its memory.

    Attributes:
        name: the processor's own name.
        cores: those that this process may use.
        memory_bytes: main memory in all.
        available_bytes: of it, what can be taken without swapping.
    """

    name: str
    cores: int
    memory_bytes: int
    available_bytes: int


def find_host() -> Host:
    """Return facts of this machine."""
    from ..memory import host_memory_available

    return Host(
        name=_processor_name(),
        cores=_usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        available_bytes=host_memory_available(),
    )


def _usable_cores() -> int:
    # Where the system has no affinity, every core may be used.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _processor_name() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
