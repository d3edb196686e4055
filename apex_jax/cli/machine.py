"""What this machine is: facts for `apex-jax info` and for summaries."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..machine.processor import processor_name, usable_cores


@dataclass(frozen=True, kw_only=True)
class Host:
    """The host processor and its memory.

    Attributes:
        name: the processor's own name.
        cores: those that this process may use.
        memory_bytes: main memory in all.
        available_bytes: of it, what this process can take without swapping, its control groups allowing.
    """

    name: str
    cores: int
    memory_bytes: int
    available_bytes: int


def find_host() -> Host:
    """Return facts of this machine."""
    from ..host_offload import available_memory

    return Host(
        name=processor_name(),
        cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        available_bytes=available_memory(),
    )
