"""What an executor runs on: the device with the model, and the host's pages with their worker."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..execution.attention_backend import DeviceAttention
from ..execution.buckets import Buckets
from ..execution.jax_device import JaxDevice
from ..host_offload import HostKVConfig, HostWorker, allocate
from ..models import LlamaConfig, Weights
from ..options import EngineOptions
from .capacity import EngineSizes


def make_device(
    config: LlamaConfig,
    weights: Weights,
    options: EngineOptions,
    sizes: EngineSizes,
    attention: DeviceAttention,
    *,
    device: jax.Device,
) -> JaxDevice:
    """Return the device with a model's weights and an empty KV cache."""
    buckets = Buckets(
        max_num_seqs=sizes.max_num_seqs,
        max_host_seqs=sizes.max_host_seqs,
        max_prefill_pages=sizes.max_prefill_pages,
        page_size=options.page_size,
        table_width=-(-sizes.max_model_len // options.page_size),
        ragged_attention=attention.ragged,
    )
    return JaxDevice(
        config,
        weights,
        attention=attention.append_and_attend,
        device=device,
        num_pages=sizes.pages,
        buckets=buckets,
        eos_token_ids=config.eos_token_ids,
    )


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


def make_worker(
    config: LlamaConfig, dtype: jnp.dtype, options: EngineOptions, sizes: EngineSizes, *, device: jax.Device
) -> HostWorker | None:
    """Allocate the host KV cache and return its worker; None without a host tier.

    Raises:
        ValueError, MemoryError: the budget is below one page, or the machine does not have the memory.
    """
    if options.host_kv_bytes is None or not sizes.host_pages:
        return None
    shape = HostKVConfig(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_width=config.head_dim,
        page_size=options.page_size,
        dtype=dtype,
    )
    cache = allocate(shape, options.host_kv_bytes, host_device(device))
    return HostWorker(cache, num_heads=config.num_attention_heads)
