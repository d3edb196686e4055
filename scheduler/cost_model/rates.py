"""Profiles of machines that are not at hand, described by the rates of their parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .curve import UNBOUNDED, AttentionTime, Curve
from .profile import Padding, Profile, ProfileKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a LLaMA that times follow from, in the project's letters.

    Attributes:
        name: for people.
        num_layers: L.
        hidden_size: D.
        num_heads, num_kv_heads, head_dim: N, K, H.
        intermediate_size: F.
        vocab_size: V.
        weight_bytes, kv_bytes: bytes of one number among the weights and in the KV cache.

    Raises:
        ValueError: a size is no whole number from 1 on, or K does not divide N.
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name} of {self.name} is {value!r}; whole numbers from 1 on are allowed")
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
    def kv_bytes_per_token(self) -> int:
        """KV of one token through all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.kv_bytes

    def __str__(self) -> str:
        return (
            f"L{self.num_layers} D{self.hidden_size} N{self.num_heads} K{self.num_kv_heads} H{self.head_dim} "
            f"F{self.intermediate_size} V{self.vocab_size}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """What an accelerator reaches, not its data sheet's peaks.

    Attributes:
        name: of the hardware.
        weights_bytes_per_s: reading weights in a linear layer of few rows.
        attention_bytes_per_s: reading KV in decode attention.
        flops_per_s: matrix products of many rows, and prefill attention.
        overlap: how far reading weights and computing overlap, 0 (one after the other) to 1 (the longer one counts).
        layer_s: what a layer takes beyond these (launches, norms), whatever the rows.
        iteration_s: what an iteration takes beyond these.
        link_bytes_per_s: copies between the device and the host's memory.
        link_s: latency of a handover to the host and back.
    """

    name: str
    weights_bytes_per_s: float
    attention_bytes_per_s: float
    flops_per_s: float
    overlap: float = 1.0
    layer_s: float = 0.0
    iteration_s: float = 0.0
    link_bytes_per_s: float = 12e9
    link_s: float = 0.0

    def __post_init__(self) -> None:
        _check(self, zero_allowed=("overlap", "layer_s", "iteration_s", "link_s"))
        if self.overlap > 1:
            raise ValueError(f"overlap of {self.name} is {self.overlap}; it must lie between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRates:
    """What a host reaches.

    Attributes:
        name: of the hardware.
        attention_bytes_per_s: reading KV in decode attention.
        job_s: what the attention of one layer of a cohort takes beyond that, whatever its rows.
        row_s: what each of its rows takes beyond that.
    """

    name: str
    attention_bytes_per_s: float
    job_s: float = 0.0
    row_s: float = 0.0

    def __post_init__(self) -> None:
        _check(self, zero_allowed=("job_s", "row_s"))


def describe(
    *, device: DeviceRates, host: HostRates, model: ModelShape, page_size: int = 64, padding: Padding | None = None
) -> Profile:
    """Return the profile that the rates of a device and a host give for a model."""
    kv = model.kv_bytes_per_token
    row_bytes = (model.num_heads + 2 * model.num_kv_heads + model.num_heads) * model.head_dim * model.kv_bytes
    pair_flops = 4 * model.num_layers * model.num_heads * model.head_dim
    return Profile(
        key=ProfileKey(
            device=device.name,
            host=host.name,
            model=f"{model.name} {model}",
            dtypes=f"{8 * model.weight_bytes}-bit weights, {8 * model.kv_bytes}-bit KV",
            software="described by rates",
        ),
        described=True,
        num_layers=model.num_layers,
        page_size=page_size,
        kv_bytes_per_token=kv,
        layer=_roofline(device, model.layer_weights, model.weight_bytes, device.layer_s),
        head=_roofline(device, model.head_weights, model.weight_bytes, 0.0),
        pre_share=model.pre_weights / model.layer_weights,
        device_attention=AttentionTime(rows=Curve.constant(0.0), tokens=Curve.line(kv / device.attention_bytes_per_s)),
        prefill_attention=Curve.line(pair_flops / device.flops_per_s),
        host_attention=AttentionTime(
            rows=Curve.line(host.row_s, start=host.job_s),
            tokens=Curve.line(kv / model.num_layers / host.attention_bytes_per_s),
        ),
        hop=Curve.line(row_bytes / device.link_bytes_per_s, start=device.link_s),
        boarding=Curve.constant(0.0),
        migration=Curve.line(kv / device.link_bytes_per_s),
        iteration_overhead=device.iteration_s,
        padding=Padding() if padding is None else padding,
    )


def _roofline(device: DeviceRates, weights: int, weight_bytes: int, start: float) -> Curve:
    """Reading the weights takes the same for any rows, computing 2 operations a weight and row."""
    read, each = weights * weight_bytes / device.weights_bytes_per_s, 2 * weights / device.flops_per_s
    hidden = 1 - device.overlap

    def seconds(rows: float) -> float:
        compute = rows * each
        return start + max(read, compute) + hidden * min(read, compute)

    corners = sorted({1.0, read / each, UNBOUNDED})
    return Curve(points=tuple((rows, seconds(rows)) for rows in corners))


def _check(rates: DeviceRates | HostRates, zero_allowed: tuple[str, ...]) -> None:
    for field in fields(rates):
        value = getattr(rates, field.name)
        if field.name == "name":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{field.name} of {rates.name} is {value!r}; finite numbers of 0 and more are allowed")
        if value == 0 and field.name not in zero_allowed:
            raise ValueError(f"{field.name} of {rates.name} is 0; it must be positive")
