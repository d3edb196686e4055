"""Describes the GPU of this machine, so that another machine can compile for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from .gpu_target import description

DRIVER = "libcuda.so.1"

_ATTRIBUTES = {
    # CUdevice_attribute of the CUDA driver API
    "clock_khz": 13,
    "cores": 16,
    "memory_clock_khz": 36,
    "bus_bits": 37,
    "l2_bytes": 38,
    "threads": 39,
    "major": 75,
    "minor": 76,
    "shared": 81,
    "shared_block": 8,
    "shared_optin": 97,
}


def describe(load: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Return the description of the first GPU, as `gpu_target.read_target` reads it.

    Args:
        load: opens a shared library.

    Raises:
        RuntimeError: there is no NVIDIA driver or no GPU, or the driver does not say what is needed.
    """
    try:
        driver = load(DRIVER)
    except OSError as error:
        raise RuntimeError(f"this machine has no NVIDIA driver ({DRIVER}): there is no GPU to describe") from error
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(100)
    _call(driver, "cuInit", 0)
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    found = {}
    for key, number in _ATTRIBUTES.items():
        value = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), number, device)
        found[key] = value.value
    if not found["memory_clock_khz"]:
        raise RuntimeError(
            "the driver does not say the clock of the GPU's memory; write memory_bandwidth into the description of a "
            "card of the same kind"
        )
    major, minor = found["major"], found["minor"]
    return description(
        name.value.decode("utf-8", "replace").replace('"', "'"),
        capability=(major, minor),
        cores=found["cores"],
        ghz=found["clock_khz"] / 1e6,
        # Two transfers a clock.
        bandwidth=2 * found["memory_clock_khz"] * 1000 * found["bus_bits"] // 8,
        l2_bytes=found["l2_bytes"],
        memory=memory.value,
        threads=found["threads"],
        shared=found["shared"],
        shared_block=found["shared_block"],
        shared_optin=found["shared_optin"],
        # Of a processor: 64 float32 units in 7.x and 8.0, 128 since.
        units=64 if (major, minor) <= (8, 0) else 128,
    )


def _call(driver: Any, function: str, *args: Any) -> None:
    if status := getattr(driver, function)(*args):
        raise RuntimeError(f"the NVIDIA driver's {function} failed with status {status}: there is no GPU to describe")
