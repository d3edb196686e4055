"""Descriptions of GPUs: those that are known, people's own, and that of this machine."""

import ctypes
from typing import ClassVar

import pytest

from apex_jax.fit.describe_gpu import describe
from apex_jax.fit.gpu_target import TARGETS, find_target


@pytest.mark.parametrize("name", TARGETS)
def test_a_known_gpu_is_read_back_from_its_description(name, tmp_path):
    target = TARGETS[name]
    file = tmp_path / "gpu.txtpb"
    file.write_text(target.text)
    found = find_target(str(file))
    assert (found.name, found.memory, found.bandwidth, found.capability) == (
        *(target.name, target.memory, target.bandwidth, target.capability),
    )
    assert target.source
    assert find_target(name.upper().replace("-", " ")) is target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:300], "describes no platform"),
        (lambda text: text.replace('"CUDA"', '"ROCM"'), "describes the platform 'ROCM'"),
        (lambda text: text.replace("registers_per_block_limit: 65536\n}", ""), "is cut: 2 brackets are|is cut"),
        (lambda text: text.replace("memory_bandwidth", "width"), "does not say memory_bandwidth"),
        (lambda text: text.replace("device_memory_size: 15655829504", "device_memory_size: 0"), "device_memory_size"),
        (lambda text: "x" * 2**21, "has 2097152 bytes"),
    ],
)
def test_files_that_describe_no_nvidia_gpu(change, message, tmp_path):
    file = tmp_path / "gpu.txtpb"
    file.write_text(change(TARGETS["t4"].text))
    with pytest.raises(ValueError, match=message):
        find_target(str(file))


def test_an_unknown_gpu():
    with pytest.raises(ValueError, match="unknown GPU 'v100'; known are t4, a10"):
        find_target("v100")


class Driver:
    """Answers as NVIDIA's driver does."""

    values: ClassVar = {
        13: 1_590_000,
        16: 40,
        36: 5_001_000,
        37: 256,
        38: 4 << 20,
        39: 1024,
        75: 7,
        76: 5,
        81: 65536,
        8: 49152,
    }

    def __init__(self, status=0):
        self.status = status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGet(self, device, ordinal):
        return 0

    def cuDeviceTotalMem_v2(self, memory, device):
        ctypes.cast(memory, ctypes.POINTER(ctypes.c_size_t))[0] = 15_655_829_504
        return 0

    def cuDeviceGetName(self, name, length, device):
        name.value = b"Tesla T4"
        return 0

    def cuDeviceGetAttribute(self, value, number, device):
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = self.values.get(number, 65536)
        return 0


def test_the_gpu_of_a_machine_is_described_as_the_known_one():
    described = describe(lambda name: Driver())
    assert described.replace("320064000000", "") == TARGETS["t4"].text.replace("320064000000", "")


def test_a_machine_without_a_gpu():
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(RuntimeError, match="no NVIDIA driver"):
        describe(load)
    with pytest.raises(RuntimeError, match="cuInit failed with status 100"):
        describe(lambda name: Driver(status=100))
