"""Hardware facts: memory, bandwidths, and what copies between the GPU and the host take in each way JAX offers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from report import Report, open_report
from timing import queued_seconds, seconds

from apex_jax.bench.host_attention import stream_read_gb_per_s
from apex_jax.execution.attention_backend import default_dtype
from apex_jax.host_offload import available_memory, machine_instructions
from apex_jax.machine.processor import processor_and_cores
from apex_jax.machine.versions import installed_versions

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "transformers", "torch", "numpy")


def main() -> int:
    """Measure."""
    report, args = open_report()
    device, host = jax.devices()[0], jax.local_devices(backend="cpu")[0]
    with report.attempt("machine"):
        describe(report, device)
    with report.attempt("bandwidth"):
        bandwidths(report, device, host, tiny=args.tiny)
    transfers = Transfers(device=device, host=host)
    with report.attempt("transfers"):
        by_size(report, transfers, sizes=(2**12, 2**16) if args.tiny else tuple(2**i for i in range(12, 29, 4)))
    with report.attempt("copies beside a busy device"):
        beside_work(report, transfers, tiny=args.tiny)
    return 0


def describe(report: Report, device: jax.Device) -> None:
    """Say what was found."""
    table = report.table("machine", "what", "found")
    memory = device.memory_stats() or {}
    table.add("device", f"{device.device_kind}, compute capability {getattr(device, 'compute_capability', 'none')}")
    table.add("device memory for JAX, bytes", memory.get("bytes_limit"))
    table.add("number type by default", default_dtype(device))
    table.add("kinds of memory", ", ".join(memory.kind for memory in device.addressable_memories()))
    table.add("driver", _driver())
    table.add("host", f"{processor_and_cores()} usable, {available_memory()} bytes available")
    table.add("native kernel", machine_instructions() or "not built")
    table.add("python", platform.python_version())
    for package, number in installed_versions(PACKAGES).items():
        table.add(package, number)
    table.add("JAX_PLATFORMS, XLA_FLAGS", f"{os.environ.get('JAX_PLATFORMS')}, {os.environ.get('XLA_FLAGS')}")
    report.fact("device", device.device_kind)
    report.fact("host", processor_and_cores())


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.max.mem,pcie.link.gen.max,pcie.link.width.max",
    ]
    asked = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=20)
    return asked.stdout.strip() or asked.stderr.strip()


def bandwidths(report: Report, device: jax.Device, host: jax.Device, *, tiny: bool) -> None:
    """Measure memory, matrix products and dispatch."""
    table = report.table("bandwidth and latency", "what", "value", "unit")
    count = 2**16 if tiny else 2**29
    block = jnp.ones(count, jnp.bfloat16, device=device)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = [copy(jnp.ones(count, jnp.bfloat16, device=device))]

    def turn(_: int) -> jax.Array:
        state[0] = copy(state[0])
        return state[0]

    copied = 4 * count / queued_seconds(turn, calls=20)
    table.add("device copy, bytes read and written", copied / 1e9, "GB/s")
    report.fact("copy_bytes_per_s", copied)
    read = jax.jit(lambda x: x.astype(jnp.float32).sum())
    table.add("device read", 2 * count / queued_seconds(lambda _: read(block), calls=20) / 1e9, "GB/s")
    size = 64 if tiny else 8192
    square = jnp.ones((size, size), jnp.bfloat16, device=device)
    product = jax.jit(lambda x: x @ x)
    flops = 2 * size**3 / queued_seconds(lambda _: product(square), calls=10)
    table.add(f"bfloat16 product of {size} x {size}", flops / 1e12, "TFLOP/s")
    report.fact("flops_per_s", flops)
    small, tick = jnp.ones(8, device=device), jax.jit(lambda x: x + 1)
    _, latency = seconds(lambda _: tick(small), repeats=50)
    table.add("smallest program, waited for", 1e6 * latency, "us")
    table.add("smallest program, queued", 1e6 * queued_seconds(lambda _: tick(small), calls=200), "us")
    with jax.default_device(host):
        streamed = stream_read_gb_per_s(2**22 if tiny else 2**30)
    table.add("host streaming read", streamed, "GB/s")
    report.fact("host_stream_gb_per_s", streamed)


Make = Callable[[int], Any]
Move = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Transfers:
    """The ways in which arrays get from one side to the other.

    A way is a function of how an array of so many bytes comes to be where it starts, and one of how it moves.
    """

    device: jax.Device
    host: jax.Device

    def on_device(self, nbytes: int) -> jax.Array:
        # Made anew: JAX keeps the numpy copy of an array that it has once given out.
        return jax.block_until_ready(jnp.zeros(nbytes // 2, jnp.bfloat16, device=self.device))

    def in_numpy(self, nbytes: int) -> np.ndarray:
        return np.ones(nbytes // 2, jnp.bfloat16)

    def on_host(self, nbytes: int) -> jax.Array:
        return jax.block_until_ready(jnp.zeros(nbytes // 2, jnp.bfloat16, device=self.host))

    def pinned(self, nbytes: int) -> jax.Array:
        return jax.block_until_ready(jax.device_put(self.in_numpy(nbytes), self._pinned))

    @property
    def _pinned(self) -> SingleDeviceSharding:
        return SingleDeviceSharding(self.device, memory_kind="pinned_host")

    def to_device(self) -> dict[str, tuple[Make, Move]]:
        """Ways from the host to the device."""

        def put(array: Any) -> jax.Array:
            return jax.device_put(array, self.device)

        def unpinned(array: jax.Array) -> jax.Array:
            return jax.device_put(
                array, SingleDeviceSharding(self.device, memory_kind=self.device.default_memory().kind)
            )

        return {
            "device_put of numpy": (self.in_numpy, put),
            "device_put of an array of the CPU backend": (self.on_host, put),
            "device_put of an array in pinned_host": (self.pinned, unpinned),
        }

    def to_host(self) -> dict[str, tuple[Make, Move]]:
        """Ways from the device to the host."""

        def announced(array: jax.Array) -> np.ndarray:
            array.copy_to_host_async()
            return np.asarray(array)

        return {
            "np.asarray": (self.on_device, np.asarray),
            "copy_to_host_async, then np.asarray": (self.on_device, announced),
            "device_put to the CPU backend": (self.on_device, lambda a: jax.device_put(a, self.host)),
            "device_put to pinned_host": (self.on_device, lambda a: jax.device_put(a, self._pinned)),
            "device_put to pinned_host, then np.asarray": (
                self.on_device,
                lambda a: np.asarray(jax.device_put(a, self._pinned)),
            ),
        }


def by_size(report: Report, transfers: Transfers, *, sizes: tuple[int, ...]) -> None:
    """Measure each way with an idle device; the fastest of the largest and smallest copies are noted as facts."""
    for direction, ways in (("to device", transfers.to_device()), ("to host", transfers.to_host())):
        table = report.table(f"copies {direction}", "way", "bytes", "us", "GB/s", "us until the call returns")
        fastest, quickest = 0.0, float("inf")
        for way, (make, move) in ways.items():
            with report.attempt(f"{direction}, {way}"):
                for nbytes in sizes:
                    call, whole = seconds(move, repeats=3 if nbytes > 2**24 else 7, prepare=partial(make, nbytes))
                    table.add(way, nbytes, 1e6 * whole, nbytes / whole / 1e9, 1e6 * call)
                    fastest, quickest = max(fastest, nbytes / whole), min(quickest, whole)
        name = direction.replace(" ", "_")
        report.fact(f"{name}_bytes_per_s", fastest)
        report.fact(f"{name}_latency_s", quickest)


def beside_work(report: Report, transfers: Transfers, *, tiny: bool) -> None:
    """See what copies do while the device computes: whether the calling thread waits, and whether the copy does."""
    size, nbytes = (32, 2**12) if tiny else (4096, 2**18)
    rounds = 8 if tiny else 400
    square = jnp.full((size, size), 1 / size, jnp.bfloat16, device=transfers.device)
    work = jax.jit(lambda x: jax.lax.fori_loop(0, rounds, lambda _, y: y @ x, x))
    # The copied array needs the result, as the attention's inputs do.
    after = jax.jit(lambda x, y: x + y[0, 0].astype(x.dtype))
    _, alone = seconds(lambda _: work(square), repeats=3)
    table = report.table(
        f"copies of {nbytes} bytes beside {1e3 * alone:.1f} ms of work on the device",
        "way",
        "ms until the call returns",
        "ms until it has arrived",
        "the call waits",
        "the copy waits",
    )
    for direction, ways in (("to device", transfers.to_device()), ("to host, of its result", transfers.to_host())):
        for way, (make, move) in ways.items():
            with report.attempt(f"beside work, {way}"):
                array = make(nbytes)
                if direction != "to device":
                    jax.block_until_ready(after(array, square))
                busy = work(square)
                if direction != "to device":
                    array = after(array, busy)
                begin = time.perf_counter()
                moved = move(array)
                called = time.perf_counter() - begin
                jax.block_until_ready(moved)
                arrived = time.perf_counter() - begin
                busy.block_until_ready()
                table.add(f"{direction}: {way}", 1e3 * called, 1e3 * arrived, called > alone / 2, arrived > alone / 2)


if __name__ == "__main__":
    sys.exit(main())
