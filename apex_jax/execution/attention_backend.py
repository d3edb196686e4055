"""What the device can do: its default number type and the decode attention that suits it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from ..host_offload import decode_attention, native_attention_available
from . import paged_attention as device_attention
from .page_writes import write_tokens
from .programs import DecodeAttention


@dataclass(frozen=True, kw_only=True)
class DeviceAttention:
    """Append and decode attention over the paged device cache.

    Attributes:
        name: for people: "native" or "xla".
        append_and_attend: see `DecodeAttention`.
        ragged: its cost follows each row's own length, whatever the width of the page table.
    """

    name: str
    append_and_attend: DecodeAttention
    ragged: bool


def device_attention_for(device: jax.Device, head_dim: int) -> DeviceAttention:
    """Return the best decode attention of a device: the native kernel on a CPU that has it, plain XLA elsewhere."""
    if device.platform == "cpu" and native_attention_available(head_dim):
        return DeviceAttention(name="native", append_and_attend=_native, ragged=True)
    return DeviceAttention(name="xla", append_and_attend=_xla, ragged=False)


def default_dtype(device: jax.Device) -> str:
    """Return the number type to compute in where the user names none: float32 on a CPU, a half type elsewhere."""
    if device.platform == "cpu":
        return "float32"
    if device.platform != "gpu":
        return "bfloat16"
    # bfloat16 arithmetic begins with compute capability 8; older GPUs emulate it slowly. Other makers' GPUs, whose
    # architecture is no number, have it.
    generation = str(getattr(device, "compute_capability", "8.0")).partition(".")[0]
    return "float16" if generation.isdecimal() and int(generation) < 8 else "bfloat16"


def _native(
    q: Array, k: Array, v: Array, kv: Array, table: Array, lengths: Array, window: int | None
) -> tuple[Array, Array]:
    # Queries in float32 keep softmax weights in float32, as prefill does.
    wide = q.astype(jnp.float32)
    out, _, kv = decode_attention(
        wide, kv, table, lengths, new_kv=(k, v), sliding_window=window, implementation="native"
    )
    return out, kv


def _xla(
    q: Array, k: Array, v: Array, kv: Array, table: Array, lengths: Array, window: int | None
) -> tuple[Array, Array]:
    kv = write_tokens(kv, table, lengths, k, v)
    return device_attention.decode_attention(q, kv, table, lengths, window=window), kv
