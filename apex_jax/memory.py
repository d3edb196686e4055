"""How large the device KV cache is to be, from a budget or from the memory that is free."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from .models.config import LlamaConfig
from .options import EngineOptions

CPU_SHARE = 8
"""On a CPU the cache takes at most an eighth of the memory that is available: other programs live there too."""


def kv_bytes_per_token(config: LlamaConfig, dtype: jnp.dtype) -> int:
    """Return the bytes that one token's keys and values take in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * jnp.dtype(dtype).itemsize


def device_pages(
    config: LlamaConfig, dtype: jnp.dtype, options: EngineOptions, *, device: jax.Device, max_num_seqs: int
) -> int:
    """Return how many pages the device KV cache gets; a cache without a given size never exceeds what could be used.

    Raises:
        ValueError: the budget, or the free memory, holds not even one page.
    """
    token_bytes = kv_bytes_per_token(config, dtype)
    page_bytes = token_bytes * options.page_size
    if options.device_kv_tokens is not None:
        pages, budget = options.device_kv_tokens // options.page_size, f"device_kv_tokens={options.device_kv_tokens}"
    elif options.device_kv_bytes is not None:
        pages, budget = options.device_kv_bytes // page_bytes, f"device_kv_bytes={options.device_kv_bytes}"
    else:
        free = free_memory(device, options.memory_fraction)
        longest = min(options.max_model_len or config.max_position_embeddings, config.max_position_embeddings)
        useful = max_num_seqs * -(-longest // options.page_size)
        pages, budget = min(free // page_bytes, useful), f"the free memory of {device} ({free} bytes)"
    if pages < 1:
        raise ValueError(
            f"{budget} is less than one page of the KV cache: {options.page_size} tokens of {token_bytes} bytes each"
        )
    return pages


def free_memory(device: jax.Device, fraction: float) -> int:
    """Return the bytes of a device's memory that a KV cache may take by default."""
    stats = device.memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return int((stats["bytes_limit"] - stats["bytes_in_use"]) * fraction)
    return host_memory_available() // CPU_SHARE


def host_memory_available() -> int:
    """Return the bytes of main memory that can be taken without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass  # Not Linux: the physical memory is all that can be asked for without another package.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
