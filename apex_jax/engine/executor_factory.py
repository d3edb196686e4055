"""What an executor runs on: the device with the model, and the host's pages with their worker."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..execution.attention_backend import DeviceAttention
from ..execution.batch import Buckets
from ..execution.jax_device import JaxDevice
from ..execution.model_runner import ModelRunner
from ..execution.own_contexts import own_contexts
from ..execution.programs import build_programs
from ..host_offload import HostKVConfig, HostWorker, allocate
from ..models import LlamaConfig, Weights
from ..scheduler import Capacity


def make_device(
    config: LlamaConfig,
    weights: Weights,
    capacity: Capacity,
    attention: DeviceAttention,
    *,
    max_model_len: int,
    device: jax.Device,
) -> JaxDevice:
    """Return the device with a model's weights and an empty KV cache."""
    buckets = make_buckets(capacity, attention, max_model_len=max_model_len)
    programs = build_programs(config, attention.append_and_attend, capacity.page_size)
    return JaxDevice(ModelRunner(config, weights, programs=programs, device=device, buckets=buckets))


def make_buckets(capacity: Capacity, attention: DeviceAttention, *, max_model_len: int) -> Buckets:
    """Return the batch shapes of a device."""
    width = -(-max_model_len // capacity.page_size)
    return Buckets(capacity=capacity, table_width=width, ragged_attention=attention.ragged)


def host_device(device: jax.Device) -> jax.Device:
    """Return the CPU device that attends for host requests: another one than `device` where there are several.

    Raises:
        RuntimeError: JAX was told to use other backends alone.
    """
    try:
        cpus = jax.local_devices(backend="cpu")
    except RuntimeError as error:
        platforms = jax.config.values["jax_platforms"]
        raise RuntimeError(
            f"a host KV cache needs JAX's CPU backend, which JAX_PLATFORMS={platforms} leaves out; "
            f"set JAX_PLATFORMS={platforms},cpu, or leave it unset"
        ) from error
    return next((cpu for cpu in cpus if cpu != device), cpus[0])


def make_worker(config: LlamaConfig, dtype: jnp.dtype, capacity: Capacity, *, device: jax.Device) -> HostWorker | None:
    """Allocate the host KV cache and return its worker; None without a host tier.

    Raises:
        MemoryError: the machine does not have the memory.
    """
    if not capacity.host_pages:
        return None
    shape = HostKVConfig(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_width=config.head_dim,
        page_size=capacity.page_size,
        dtype=dtype,
    )
    cache = allocate(shape, capacity.host_pages * shape.page_bytes, host_device(device))
    return HostWorker(
        cache,
        num_heads=config.num_attention_heads,
        sliding_window=config.sliding_window,
        contexts=own_contexts,
    )
