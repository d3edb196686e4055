"""Says when KV that was asked for is more than a described card or host has room for."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from ..scheduler.cost_model.hardware import DeviceSpec, HostSpec, ModelShape


def warn_of_memory(
    out: TextIO,
    *,
    device: DeviceSpec,
    model: ModelShape,
    device_kv_tokens: int | None,
    host: HostSpec | None = None,
    host_kv_gb: float | None = None,
) -> None:
    """Write one line if what was asked for exceeds the memory; cards of other sizes may be meant, so it is no error.

    Args:
        out: where it is written.
        device, model: weights and KV together are held against the card's memory.
        device_kv_tokens: None where it is what fits.
        host: None where it is no described one.
        host_kv_gb: None where it is what fits.
    """
    found = []
    if device_kv_tokens is not None:
        weights, kv = model.weights_bytes / 1e9, device_kv_tokens * model.kv_bytes_per_token / 1e9
        if weights + kv > device.memory_gb:
            found.append(
                f"{model.name}'s weights of {weights:.3g} GB and {device_kv_tokens:,} tokens of KV, {kv:.3g} GB, "
                f"exceed {device.name}'s {device.memory_gb:g} GB"
            )
    if host is not None and host_kv_gb is not None and host_kv_gb > host.memory_gb:
        found.append(f"{host_kv_gb:g} GB of KV exceed {host.name}'s {host.memory_gb:g} GB")
    if found:
        out.write(f"warning: {'; '.join(found)}\n")
