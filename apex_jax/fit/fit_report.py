"""What a model takes of a GPU and what its programs do, gathered from the process that compiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from .gpu_target import GpuTarget

PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
INSTALL = "pip install 'apex-jax[cuda-compile]'"

_GB = 1e9


class FitError(ValueError):
    """It cannot be said whether a model fits."""


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """Whether a model fits a GPU, and what its programs do.

    Attributes:
        device: the GPU.
        model: its name.
        fraction: share of the GPU's memory that JAX may allocate.
        refused: why it does not fit; None if it does.
        planned: sizes of the engine; empty if none could be planned.
        programs: of each compiled program name, shape, temp_bytes, kernels, bytes_read, bytes_written, copies, ...
    """

    device: GpuTarget
    model: str
    fraction: float
    refused: str | None
    planned: Mapping[str, Any]
    programs: Sequence[Mapping[str, Any]]

    @property
    def limit(self) -> int:
        """Bytes that JAX may allocate."""
        return int(self.device.memory * self.fraction)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self.planned["device_kv_tokens"] * self.planned["kv_bytes_per_token"]

    @property
    def program_bytes(self) -> int:
        """The most that one program takes beside what stays: temporaries and results."""
        return max((p["temp_bytes"] + p["result_bytes"] for p in self.programs), default=0)

    @property
    def left(self) -> int:
        """Bytes left beside weights, KV and the largest program."""
        return self.limit - self.planned["weight_bytes"] - self.kv_bytes - self.program_bytes

    @property
    def fits(self) -> bool:
        """Whether all of it is within what JAX may allocate."""
        return self.refused is None and self.left >= 0

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can say it."""
        sizes = dict(self.planned)
        if self.refused is None:
            sizes |= {"kv_bytes": self.kv_bytes, "program_bytes": self.program_bytes, "left_bytes": self.left}
        return {
            "device": self.device.name,
            "source": self.device.source,
            "memory_bytes": self.device.memory,
            "bandwidth_bytes_per_s": self.device.bandwidth,
            "limit_bytes": self.limit,
            "model": self.model,
            "fits": self.fits,
            "refused": self.refused,
            "device_kv_tokens": sizes.pop("device_kv_tokens", 0),
            **sizes,
            "compiled_not_run": True,
            "programs": list(self.programs),
        }


def compile_fit(
    target: GpuTarget,
    model: str,
    *,
    dtype: str,
    num_layers: int | None,
    options: Mapping[str, Any],
    fraction: float,
    progress: Callable[[int, int], None],
) -> FitReport:
    """Compile a model's programs for a GPU in a process of their own and say what they take.

    Args:
        target: the GPU.
        model: a preset's name, a folder or a GGUF file.
        dtype: of weights and KV, or "auto".
        num_layers: of the model; its own if None.
        options: of `EngineOptions`.
        fraction: share of the GPU's memory that JAX may allocate.
        progress: told after each program how many are compiled, of how many.

    Raises:
        FitError: the compiler is not installed, or its process failed.
    """
    need_compiler()
    request = {
        "target": asdict(target),
        "model": model,
        "dtype": dtype,
        "num_layers": num_layers,
        "options": dict(options),
        "fraction": fraction,
    }
    refused, planned, programs, count = None, {}, [], 0
    for message in _answers(request, compiler_environment(target)):
        match message:
            case {"refused": reason}:
                refused = reason
            case {"planned": sizes}:
                planned = sizes
            case {"programs": number}:
                count = number
            case {"program": program}:
                programs.append(program)
        progress(len(programs), count)
    return FitReport(device=target, model=model, fraction=fraction, refused=refused, planned=planned, programs=programs)


def need_compiler() -> None:
    """Check that JAX's CUDA plugin is installed, and for this version of JAX.

    Raises:
        FitError: it is not.
    """
    from importlib.metadata import PackageNotFoundError, version

    if not any(find_spec("jax_plugins") and find_spec(name) for name in PLUGINS):
        raise FitError(f"compiling for a GPU needs JAX's CUDA compiler, which is not installed: {INSTALL}")
    for name in ("jax-cuda12-plugin", "jax-cuda13-plugin"):
        try:
            plugin = version(name)
        except PackageNotFoundError:
            continue
        if plugin != (jax := version("jax")):
            raise FitError(
                f"{name} is {plugin} and jax is {jax}; they have to be of one version: "
                f"pip install {name}=={jax} {name.replace('plugin', 'pjrt')}=={jax}"
            )


def compiler_environment(target: GpuTarget) -> dict[str, str]:
    """Return what has to be in the environment of a process before it imports JAX to compile for a GPU."""
    # LLVM need not optimise kernels that nobody runs: what XLA says of them is the same.
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0", "--xla_backend_optimization_level=0"]
    if not target.has_triton:
        flags.append("--xla_gpu_enable_triton_gemm=false")
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags).strip(), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _answers(request: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "apex_jax.fit"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment},
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for line in process.stdout:
                yield json.loads(line)
            if process.wait() != 0:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [f"it ended with status {process.returncode}"])[-1]
                raise FitError(f"the process that compiles for {request['target']['name']} failed: {last[:500]}")
        finally:
            process.kill()


def lines(report: FitReport) -> Iterator[str]:
    """Yield a report as text of one screen."""
    device, planned = report.device, report.planned
    yield (
        f"{report.model} on {device.name} (compute capability {device.compute_capability}, "
        f"{device.memory / _GB:.2f} GB, {device.bandwidth / _GB:,.0f} GB/s): compiled, not run"
    )
    yield f"numbers of the GPU: {device.source}"
    yield ""
    if not planned:
        yield f"does not fit: {report.refused}"
        return
    yield (
        f"{'fits' if report.fits else 'DOES NOT FIT'}: {planned['device_kv_tokens']:,} tokens of KV, contexts up to "
        + (f"{planned['max_model_len']:,}, {planned['max_num_seqs']} requests at once, {planned['dtype']}")
    )
    yield ""
    yield from _memory(report)
    if report.refused is not None:
        yield f"not compiled: {report.refused}"
        return
    yield ""
    yield from _programs(report)
    yield ""
    yield from _steps(report)


def _memory(report: FitReport) -> Iterator[str]:
    rows = (
        ("weights", report.planned["weight_bytes"], f"{report.planned['num_layers']} layers"),
        ("KV cache", report.kv_bytes, f"{report.planned['kv_bytes_per_token']:,} bytes a token"),
        ("largest program", report.program_bytes, f"{report.planned['work_bytes'] / _GB:.3f} GB were kept for it"),
        ("left", report.left, ""),
        ("JAX may allocate", report.limit, f"{report.fraction:.0%} of the memory: XLA_PYTHON_CLIENT_MEM_FRACTION"),
    )
    for name, size, note in rows:
        yield f"  {name:18}{size / _GB:9.3f} GB  {note}".rstrip()


def _programs(report: FitReport) -> Iterator[str]:
    yield f"{'program':13}{'shapes':>7}{'temporaries, MB':>17}{'kernels':>9}  {'the largest':50}"
    for name in dict.fromkeys(program["name"] for program in report.programs):
        group = [program for program in report.programs if program["name"] == name]
        largest = max(group, key=lambda p: p["temp_bytes"])
        kernels = sorted(p["kernels"] for p in group)
        yield (
            f"{name:13}{len(group):7}{largest['temp_bytes'] / 1e6:17.1f}"
            f"{f'{kernels[0]}-{kernels[-1]}' if kernels[0] < kernels[-1] else kernels[0]:>9}  {largest['shape'][:60]}"
        )
    moved = [p for p in report.programs if not p["updated_in_place"]]
    yield "every cache is updated in place" if not moved else f"{len(moved)} programs copy a cache that they update"
    copying = [p for p in report.programs if p["copies"]]
    if not copying:
        yield "no program copies a weight or KV"
        return
    for name in dict.fromkeys(p["name"] for p in copying):
        group = [p for p in copying if p["name"] == name]
        most = max(group, key=lambda p: sum(copy["nbytes"] for copy in p["copies"]))
        size = sum(copy["nbytes"] for copy in most["copies"])
        of = most["copies"][0]["of"]
        yield f"{name}: {len(group)} of its shapes copy, at most {size / 1e6:.1f} MB of {of} ({most['shape']})"


def decode_steps(report: FitReport) -> list[Mapping[str, Any]]:
    """Return the programs of decode steps with the widest page table."""
    decodes = [p for p in report.programs if p["name"] == "decode_step"]
    widest = max((_cached(program) for program in decodes), default=0)
    return [program for program in decodes if _cached(program) == widest]


def _steps(report: FitReport) -> Iterator[str]:
    """Yield what the bytes of decode steps take at the card's bandwidth."""
    shown = decode_steps(report)
    if not shown:
        return
    layers = report.planned["num_layers"]
    yield f"{'decode step':34}{'kernels a layer':>16}{'GB read':>9}{'fewest':>8}{'written':>9}{'at least, ms':>14}"
    for program in shown:
        size = program["bytes_read"] + program["bytes_written"]
        yield (
            f"{program['shape']:34}{program['kernels'] / layers:16.1f}{program['bytes_read'] / _GB:9.3f}"
            f"{program['fewest_bytes_read'] / _GB:8.3f}{program['bytes_written'] / _GB:9.3f}"
            f"{1e3 * size / report.device.bandwidth:14.2f}"
        )


def _cached(program: Mapping[str, Any]) -> int:
    return int(program["shape"].split()[-2])
