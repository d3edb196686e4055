"""Accelerators, hosts and models by their rates and sizes: what a user describes, and what times follow from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from .curve import Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """An accelerator by what engines reach on it, not by its peaks. GB are 1e9 bytes.

    Attributes:
        name: as catalogues and the command line know it.
        memory_gb: all of its memory; no time follows from it.
        weights_gb_per_s: reading weights in a linear layer of few rows.
        attention_gb_per_s: reading KV in decode attention.
        tflops: half-precision matrix products of many rows, and prefill attention.
        overlap: how far reading weights and computing overlap, 0 (one after the other) to 1 (the longer one counts).
        link_gb_per_s: copies to and from the host, in large pieces.
        link_us: latency of a handover to the host and back.
        layer_us, iteration_us: what a layer and an iteration take beyond the rates (launches, sampling).
        linear_ms: published (rows, milliseconds) of all linear layers and the head of a model, beside which the two
            rates for linear layers count only between models. Empty: the rates alone.
        linear_weights_gb: weights of that model.
        sources: for each number where it comes from; a text that begins with "assumed" marks an assumption.

    Raises:
        ValueError: a number is not finite or out of range.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """A host by what decode attention reaches in its memory. GB are 1e9 bytes.

    Attributes:
        name: as catalogues and the command line know it.
        cores: physical cores; no time follows from them.
        memory_gb: all of its memory; no time follows from it.
        attention_gb_per_s: reading KV in decode attention, all cores together.
        job_us: what the attention of one layer of a cohort takes beyond that, whatever its rows.
        row_us: what each of its rows takes beyond that.
        sources: for each number where it comes from; a text that begins with "assumed" marks an assumption.

    Raises:
        ValueError: a number is not finite or out of range.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a LLaMA that times and memory follow from, in the project's letters.

    Attributes:
        name: for people.
        num_layers: L.
        hidden_size: D.
        num_heads, num_kv_heads, head_dim: N, K, H.
        intermediate_size: F.
        vocab_size: V.
        weight_bytes, kv_bytes: bytes of one number among the weights and in the KV cache.
        tied: the output head is the embedding matrix.

    Raises:
        ValueError: a size is no whole number from 1 on, K does not divide N, or `tied` is no truth value.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    weight_bytes: int = 2
    kv_bytes: int = 2
    tied: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.tied, bool):
            raise ValueError(f"{self.name!r}: tied is {self.tied!r}; true or false is needed")
        for size in fields(self):
            value = getattr(self, size.name)
            if size.name in ("name", "tied"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{size.name} of {self.name} is {value!r}; whole numbers from 1 on are allowed")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads of {self.name} is {self.num_heads}; a multiple of its num_kv_heads, {self.num_kv_heads}, "
                "is needed"
            )

    @property
    def pre_weights(self) -> int:
        """Numbers in one layer's pre-attention."""
        return self.hidden_size * (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Numbers in one layer's matrices."""
        output = self.num_heads * self.head_dim * self.hidden_size
        return self.pre_weights + output + 3 * self.hidden_size * self.intermediate_size

    @property
    def head_weights(self) -> int:
        """Numbers in the head."""
        return self.hidden_size * self.vocab_size

    @property
    def linear_bytes(self) -> int:
        """Bytes that one pass over all layers and the head reads."""
        return (self.num_layers * self.layer_weights + self.head_weights) * self.weight_bytes

    @property
    def weights_bytes(self) -> int:
        """Bytes of all matrices, the embedding included."""
        return self.linear_bytes + (0 if self.tied else self.head_weights * self.weight_bytes)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV of one token through all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.kv_bytes

    def __str__(self) -> str:
        return (
            f"L{self.num_layers} D{self.hidden_size} N{self.num_heads} K{self.num_kv_heads} H{self.head_dim} "
            f"F{self.intermediate_size} V{self.vocab_size}"
        )


def device_kv_tokens(device: DeviceSpec, model: ModelShape, *, memory_fraction: float, workspace_gb: float) -> int:
    """Return how many tokens of KV fit beside the weights.

    Args:
        memory_fraction: share of the device's memory that an engine takes.
        workspace_gb: what activations and libraries need of it.

    Raises:
        ValueError: not one token fits.
    """
    free = (device.memory_gb * memory_fraction - workspace_gb) * 1e9 - model.weights_bytes
    if free < model.kv_bytes_per_token:
        raise ValueError(
            f"{model.name} needs {model.weights_bytes / 1e9:.1f} GB for weights and {workspace_gb:g} GB beside them; "
            f"{memory_fraction:.0%} of {device.name}'s {device.memory_gb:g} GB leave no room for KV"
        )
    return int(free // model.kv_bytes_per_token)


def _check(kind: str, spec: DeviceSpec | HostSpec, *, may_be_zero: tuple[str, ...]) -> None:
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
