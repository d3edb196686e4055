"""Accelerators, hosts and models that are not at hand: their rates and sizes, and the profiles that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from .curve import Curve
from .profile import Padding, Profile
from .rates import DeviceRates, HostRates, ModelShape, describe


@dataclass(frozen=True, kw_only=True)
class Device:
    """An accelerator by what engines reach on it, not by its peaks. GB are 1e9 bytes.

    Attributes:
        name: as catalogues and the command line know it.
        memory_gb: all of its memory.
        weights_gb_per_s: reading weights in a linear layer of few rows.
        attention_gb_per_s: reading KV in decode attention.
        tflops: half-precision matrix products of many rows.
        overlap: how far reading weights and computing overlap, 0 (one after the other) to 1 (the longer one counts).
        link_gb_per_s: copies to and from the host, in large pieces.
        link_us: latency of a handover to the host and back.
        layer_us, iteration_us: what a layer and an iteration take beyond the rates (launches, sampling).
        linear_ms: published (rows, milliseconds) of all linear layers and the head of a model, beside which the two
            rates for linear layers count only between models. Empty: the rates alone.
        linear_weights_gb: weights of that model.
        sources: for each number where it comes from; a text that begins with "assumed" marks an assumption.
    """

    name: str
    memory_gb: float
    weights_gb_per_s: float
    attention_gb_per_s: float
    tflops: float
    link_gb_per_s: float
    overlap: float = 1.0
    link_us: float = 0.0
    layer_us: float = 0.0
    iteration_us: float = 0.0
    linear_ms: tuple[tuple[int, float], ...] = ()
    linear_weights_gb: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("device", self, may_be_zero=("overlap", "link_us", "layer_us", "iteration_us", "linear_weights_gb"))
        if self.overlap > 1:
            raise ValueError(f"device {self.name!r}: overlap is {self.overlap}; it must lie between 0 and 1")
        if bool(self.linear_ms) != bool(self.linear_weights_gb):
            raise ValueError(f"device {self.name!r}: linear_ms and linear_weights_gb must be given together")
        if self.linear_ms:
            try:
                Curve(points=self.linear_ms)
            except ValueError as error:
                raise ValueError(f"device {self.name!r}: linear_ms is no curve: {error}") from error

    @property
    def rates(self) -> DeviceRates:
        """The same in bytes and seconds."""
        return DeviceRates(
            name=self.name,
            weights_bytes_per_s=self.weights_gb_per_s * 1e9,
            attention_bytes_per_s=self.attention_gb_per_s * 1e9,
            flops_per_s=self.tflops * 1e12,
            overlap=self.overlap,
            layer_s=self.layer_us * 1e-6,
            iteration_s=self.iteration_us * 1e-6,
            link_bytes_per_s=self.link_gb_per_s * 1e9,
            link_s=self.link_us * 1e-6,
        )


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host by what decode attention reaches in its memory. GB are 1e9 bytes.

    Attributes:
        name: as catalogues and the command line know it.
        cores: physical cores; no time follows from them.
        memory_gb: all of its memory.
        attention_gb_per_s: reading KV in decode attention, all cores together.
        job_us: what the attention of one layer of a cohort takes beyond that, whatever its rows.
        row_us: what each of its rows takes beyond that.
        sources: for each number where it comes from; a text that begins with "assumed" marks an assumption.
    """

    name: str
    cores: int
    memory_gb: float
    attention_gb_per_s: float
    job_us: float = 0.0
    row_us: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("host", self, may_be_zero=("job_us", "row_us"))
        if not isinstance(self.cores, int):
            raise ValueError(f"host {self.name!r}: cores is {self.cores!r}; a whole number is needed")

    @property
    def rates(self) -> HostRates:
        """The same in bytes and seconds."""
        return HostRates(
            name=self.name,
            attention_bytes_per_s=self.attention_gb_per_s * 1e9,
            job_s=self.job_us * 1e-6,
            row_s=self.row_us * 1e-6,
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model by its shape, and whether its output head is the embedding matrix."""

    shape: ModelShape
    tied: bool = False

    @property
    def name(self) -> str:
        return self.shape.name

    @property
    def linear_bytes(self) -> int:
        """Bytes that one pass over all layers and the head reads."""
        shape = self.shape
        return (shape.num_layers * shape.layer_weights + shape.head_weights) * shape.weight_bytes

    @property
    def weights_bytes(self) -> int:
        """Bytes of all matrices, the embedding included."""
        return self.linear_bytes + (0 if self.tied else self.shape.head_weights * self.shape.weight_bytes)


def described_profile(
    device: Device, host: Host, model: Model, *, page_size: int = 64, padding: Padding | None = None
) -> Profile:
    """Return the profile that follows from the rates, with the device's published linear times where it has them.

    Published times of another model are scaled by the weights of each part: at equal rows both its reading and its
    computing are proportional to them.
    """
    shape = model.shape
    profile = describe(device=device.rates, host=host.rates, model=shape, page_size=page_size, padding=padding)
    if not device.linear_ms:
        return profile

    def part(weights: int, start: float) -> Curve:
        share = weights * shape.weight_bytes / (device.linear_weights_gb * 1e9)
        return Curve(points=tuple((float(rows), start + ms * 1e-3 * share) for rows, ms in device.linear_ms))

    return replace(profile, layer=part(shape.layer_weights, device.layer_us * 1e-6), head=part(shape.head_weights, 0.0))


def device_kv_tokens(device: Device, model: Model, *, memory_fraction: float, workspace_gb: float) -> int:
    """Return how many tokens of KV fit beside the weights.

    Args:
        memory_fraction: share of the device's memory that an engine takes.
        workspace_gb: what activations and libraries need of it.

    Raises:
        ValueError: not one token fits.
    """
    free = (device.memory_gb * memory_fraction - workspace_gb) * 1e9 - model.weights_bytes
    if free < model.shape.kv_bytes_per_token:
        raise ValueError(
            f"{model.name} needs {model.weights_bytes / 1e9:.1f} GB for weights and {workspace_gb:g} GB beside them; "
            f"{memory_fraction:.0%} of {device.name}'s {device.memory_gb:g} GB leave no room for KV"
        )
    return int(free // model.shape.kv_bytes_per_token)


def _check(kind: str, spec: Device | Host, *, may_be_zero: tuple[str, ...]) -> None:
    known = [f.name for f in fields(spec)]
    for name in known:
        value = getattr(spec, name)
        if name in ("name", "sources", "linear_ms"):
            continue
        if isinstance(value, str):
            raise ValueError(f"{kind} {spec.name!r}: {name} is {value!r}, which is text; a number is needed")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{kind} {spec.name!r}: {name} is {value!r}; finite numbers above 0 are allowed")
        if value == 0 and name not in may_be_zero:
            raise ValueError(f"{kind} {spec.name!r}: {name} is 0; it must be above 0")
    for name in spec.sources:
        if name not in known:
            raise ValueError(f"{kind} {spec.name!r}: sources names {name!r}; allowed are {', '.join(known)}")
