"""Profiles of machines that are not at hand, as they follow from the rates of their parts."""

from __future__ import annotations

from .curve import UNBOUNDED, AttentionTime, Curve
from .hardware import DeviceSpec, HostSpec, ModelShape
from .profile import Padding, Profile, ProfileKey


def describe(
    device: DeviceSpec, host: HostSpec, model: ModelShape, *, page_size: int = 64, padding: Padding | None = None
) -> Profile:
    """Return the profile that follows from the rates, with the device's published linear times where it has them.

    Published times of another model are scaled by the weights of each part: at equal rows both its reading and its
    computing are proportional to them.
    """
    kv = model.kv_bytes_per_token
    link_bytes_per_s = device.link_gb_per_s * 1e9
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
        layer=_linear(device, model.layer_weights, model.weight_bytes, start=device.layer_us * 1e-6),
        head=_linear(device, model.head_weights, model.weight_bytes, start=0.0),
        pre_share=model.pre_weights / model.layer_weights,
        device_attention=AttentionTime(
            rows=Curve.constant(0.0), tokens=Curve.line(kv / (device.attention_gb_per_s * 1e9))
        ),
        prefill_attention=Curve.line(pair_flops / (device.tflops * 1e12)),
        host_attention=AttentionTime(
            rows=Curve.line(host.row_us * 1e-6, start=host.job_us * 1e-6),
            tokens=Curve.line(kv / model.num_layers / (host.attention_gb_per_s * 1e9)),
        ),
        hop=Curve.line(row_bytes / link_bytes_per_s, start=device.link_us * 1e-6),
        boarding=Curve.constant(0.0),
        migration=Curve.line(kv / link_bytes_per_s),
        iteration_overhead=device.iteration_us * 1e-6,
        padding=Padding() if padding is None else padding,
    )


def _linear(device: DeviceSpec, weights: int, weight_bytes: int, *, start: float) -> Curve:
    """Return the seconds of matrices of so many weights over rows, from `start` on."""
    if device.linear_ms:
        share = weights * weight_bytes / (device.linear_weights_gb * 1e9)
        return Curve(points=tuple((float(rows), start + ms * 1e-3 * share) for rows, ms in device.linear_ms))
    # Reading the weights takes the same for any rows, computing 2 operations a weight and row.
    read, each = weights * weight_bytes / (device.weights_gb_per_s * 1e9), 2 * weights / (device.tflops * 1e12)
    hidden = 1 - device.overlap

    def seconds(rows: float) -> float:
        compute = rows * each
        return start + max(read, compute) + hidden * min(read, compute)

    corners = sorted({1.0, read / each, UNBOUNDED})
    return Curve(points=tuple((rows, seconds(rows)) for rows in corners))
