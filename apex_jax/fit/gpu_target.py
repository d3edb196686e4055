"""Descriptions of GPUs to compile for, as XLA's compiler takes them.

A description is a text in the format of `stream_executor.GpuTargetConfigProto`. Those of known cards are made of
NVIDIA's data sheets and white papers (processors, clock, memory, caches) and of the table of compute capabilities in
the CUDA C++ programming guide (threads, registers and shared memory of a processor).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..scheduler.cost_model.catalogue import plain_name

LARGEST_FILE = 2**20


@dataclass(frozen=True, kw_only=True)
class GpuTarget:
    """A GPU to compile for.

    Attributes:
        name: for people.
        text: its description for the compiler.
        memory: bytes of device memory.
        bandwidth: bytes a second between them and the processors.
        capability: compute capability, major and minor.
        source: where the numbers come from.
    """

    name: str
    text: str
    memory: int
    bandwidth: int
    capability: tuple[int, int]
    source: str

    @property
    def compute_capability(self) -> str:
        """As it is written: 7.5."""
        return "{}.{}".format(*self.capability)

    @property
    def has_triton(self) -> bool:
        """Whether XLA writes kernels in Triton for it."""
        return self.capability >= (8, 0)


_GENERATIONS = {
    # threads and shared memory of a processor, of a block, of a block that opts in; float32 units
    (7, 5): (1024, 65536, 49152, 65536, 64),
    (8, 0): (2048, 167936, 49152, 166912, 64),
    (8, 6): (1536, 102400, 49152, 101376, 128),
    (8, 9): (1536, 102400, 49152, 101376, 128),
    (9, 0): (2048, 233472, 49152, 232448, 128),
}


def description(
    title: str,
    *,
    capability: tuple[int, int],
    cores: int,
    ghz: float,
    bandwidth: int,
    l2_bytes: int,
    memory: int,
    threads: int,
    shared: int,
    shared_block: int,
    shared_optin: int,
    units: int,
) -> str:
    """Return a description for the compiler.

    Args:
        title: the card's name.
        capability: compute capability.
        cores: multiprocessors.
        ghz: their clock.
        bandwidth: bytes a second of device memory.
        l2_bytes: of the second-level cache.
        memory: bytes of device memory.
        threads, units: that a multiprocessor runs at once, and its float32 units.
        shared, shared_block, shared_optin: bytes of shared memory of a multiprocessor, of a block, of one that opts in.
    """
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {shared_block}
  shared_memory_per_core: {shared}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_bytes}
  clock_rate_ghz: {ghz}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {shared_optin}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{title}"
"""


def _card(
    title: str, capability: tuple[int, int], cores: int, ghz: float, gb_per_s: float, l2_mib: int, memory: int, of: str
) -> GpuTarget:
    threads, shared, block, optin, units = _GENERATIONS[capability]
    bandwidth = round(gb_per_s * 1e9)
    text = description(
        title,
        capability=capability,
        cores=cores,
        ghz=ghz,
        bandwidth=bandwidth,
        l2_bytes=l2_mib * 2**20,
        memory=memory,
        threads=threads,
        shared=shared,
        shared_block=block,
        shared_optin=optin,
        units=units,
    )
    return GpuTarget(name=title, text=text, memory=memory, bandwidth=bandwidth, capability=capability, source=of)


_USABLE = "memory as the driver shows it: the data sheet's less what error correction and the driver take"

TARGETS: dict[str, GpuTarget] = {
    "t4": _card("Tesla T4", (7, 5), 40, 1.59, 320.064, 4, 15_655_829_504, f"T4 data sheet; {_USABLE}"),
    "a10": _card("NVIDIA A10", (8, 6), 72, 1.695, 600.096, 6, 23_609_475_072, f"A10 data sheet; {_USABLE}"),
    "a10g": _card("NVIDIA A10G", (8, 6), 80, 1.71, 600.096, 6, 23_609_475_072, f"AWS's g5 page; {_USABLE}"),
    "l4": _card("NVIDIA L4", (8, 9), 58, 2.04, 300.096, 48, 23_609_475_072, f"L4 data sheet; {_USABLE}"),
    "rtx-4090": _card(
        "NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 1008.096, 72, 25_386_352_640, f"Ada white paper; {_USABLE}"
    ),
    "a100": _card(
        "NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 1555.2, 40, 42_298_834_944, f"A100 data sheet; {_USABLE}"
    ),
    "h100": _card(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 3352.32, 50, 84_942_979_072, f"H100 data sheet; {_USABLE}"
    ),
    "gh200": _card(
        "NVIDIA GH200 480GB", (9, 0), 132, 1.98, 4022.784, 60, 101_468_602_368, f"GH200 data sheet; {_USABLE}"
    ),
}


def find_target(name: str) -> GpuTarget:
    """Return a known GPU by its name, or the one that a file describes.

    Raises:
        ValueError: there is none of that name, or the file is no description of an NVIDIA GPU.
        OSError: the file cannot be read.
    """
    plain = plain_name(name)
    if plain in TARGETS:
        return TARGETS[plain]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"unknown GPU {name!r}; known are {', '.join(TARGETS)}, or a file that `--describe` wrote")
    return read_target(path)


def read_target(path: Path) -> GpuTarget:
    """Read the description of a GPU; see `find_target`."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a description of a GPU has at most {LARGEST_FILE}")
    text = path.read_text("utf-8", errors="replace")
    if 'platform_name: "CUDA"' not in text:
        found = re.search(r'platform_name: "([^"]{0,40})"', text)
        kind = f"the platform {found[1]!r}" if found else "no platform"
        raise ValueError(f'{path} describes {kind}; a description of a GPU has platform_name: "CUDA"')
    if text.count("{") != text.count("}"):
        raise ValueError(f"{path} is cut: {text.count('{')} brackets are opened and {text.count('}')} closed")
    numbers = {}
    for key in ("device_memory_size", "memory_bandwidth", "core_count", "major", "minor"):
        found = re.search(rf"\b{key}: (\d{{1,18}})\b", text)
        if found is None or (int(found[1]) < 1 and key != "minor"):
            raise ValueError(f"{path} does not say {key}, a number above 0; `--describe` writes all that is needed")
        numbers[key] = int(found[1])
    title = re.search(r'device_description_str: "([^"]{1,80})"', text)
    return GpuTarget(
        name=title[1] if title else path.stem,
        text=text,
        memory=numbers["device_memory_size"],
        bandwidth=numbers["memory_bandwidth"],
        capability=(numbers["major"], numbers["minor"]),
        source=f"read from {path.name}",
    )
