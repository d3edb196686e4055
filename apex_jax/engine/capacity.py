"""What an engine takes of its device's memory: judged from the model's sizes, before anything is allocated."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from ..execution.batch import HOST_SEQS
from ..execution.model_shape import shape_of
from ..host_offload import available_memory
from ..models.config import LlamaConfig
from ..options import EngineOptions
from ..scheduler import Capacity
from .workspace import Work

DEVICE_SHARE = 0.9
"""Of an accelerator's free memory, what the cache takes at most by default."""

HOST_SHARE = 0.125
"""The same of main memory, where other programs live too."""

HOST_STEPS, DEVICE_STEPS = 4, 32
"""Sizes of a cache between one power of two and the next, where free memory decides it. What is free differs from start
to start, in main memory more than in an accelerator's; every size has programs of its own to compile."""


def plan_memory(config: LlamaConfig, dtype: jnp.dtype, options: EngineOptions, *, device: jax.Device) -> Capacity:
    """Return how large an engine becomes; a KV cache without a given size never exceeds what could be used.

    To be called before the weights are on the device.

    Raises:
        ValueError: the weights, the KV cache or the work of an iteration do not fit into the device's free memory; the
            budget, or what is free, holds not even one page, or two of the host's; `max_model_len` is above the model's
            or the cache's limit; there are more cohorts than boundaries.
    """
    _check_cohorts(config, options)
    own_limit, page_size = config.max_position_embeddings, options.page_size
    if options.max_model_len is not None and options.max_model_len > own_limit:
        raise ValueError(
            f"max_model_len={options.max_model_len} is above the model's own limit of {own_limit} tokens "
            "(max_position_embeddings)"
        )
    longest = options.max_model_len or own_limit
    max_num_seqs = options.max_num_seqs or (16 if device.platform == "cpu" else 64)
    max_host_seqs = 0 if options.host_kv_bytes is None else options.max_host_seqs or HOST_SEQS * max_num_seqs
    # No iteration has more prompt tokens than all requests together.
    prompt_pages = max(1, min(options.max_num_batched_tokens, max_num_seqs * longest) // page_size)
    free = _free_after_weights(config, dtype, device)
    requests = max_num_seqs + max_host_seqs
    work = work_of(config, dtype, options, device=device)
    prompt_tokens = prompt_pages * page_size
    _check_work(work, options, requests=requests, prompt_tokens=prompt_tokens, free=free, device=device)
    free -= work.nbytes(requests=requests, prompt_tokens=prompt_tokens)
    window = config.sliding_window
    # A request never holds more than a window, the prompt tokens of an iteration behind it, and a page begun.
    each = longest if window is None else min(longest, window + prompt_tokens + page_size)
    pages, budget = _pages(config, dtype, options, useful_tokens=max_num_seqs * each, free=free, device=device)
    cached = pages * page_size
    capacity = Capacity(
        device_kv_tokens=cached,
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_host_seqs=max_host_seqs,
        max_prefill_tokens=prompt_tokens,
        sliding_window=window,
    )
    if options.max_model_len is not None and not capacity.holds(options.max_model_len):
        raise ValueError(
            f"max_model_len={options.max_model_len} is above what the KV cache holds: {budget} gives {cached} tokens "
            f"in pages of {page_size}, and every request is prefilled on the device{_of_window(capacity)}"
        )
    used = free_memory(device) - free + cached * shape_of(config, dtype).kv_bytes_per_token
    host_pages = _host_pages(config, dtype, options, used=used if _limit(device) is None else 0)
    return replace(capacity, host_kv_tokens=host_pages * page_size)


def _of_window(capacity: Capacity) -> str:
    if capacity.sliding_window is None:
        return ""
    return (
        f"; its window of {capacity.sliding_window} tokens would do, beside the {capacity.max_prefill_tokens} prompt "
        "tokens of an iteration (max_num_batched_tokens)"
    )


def work_of(config: LlamaConfig, dtype: jnp.dtype, options: EngineOptions, *, device: jax.Device) -> Work:
    """Return what the programs of an engine of these options take on a device."""
    return Work(
        config=config,
        dtype=dtype,
        page_size=options.page_size,
        longest=options.max_model_len or config.max_position_embeddings,
        accelerator=device.platform != "cpu",
    )


def longest_context(config: LlamaConfig, options: EngineOptions, capacity: Capacity) -> int:
    """Return the most tokens, prompt and output, that a request can have."""
    longest = options.max_model_len or config.max_position_embeddings
    return longest if capacity.holds(longest) else capacity.longest


def _check_cohorts(config: LlamaConfig, options: EngineOptions) -> None:
    layers, cohorts = config.num_hidden_layers, options.num_cohorts
    if cohorts is not None and cohorts > layers + 1:
        raise ValueError(
            f"num_cohorts={cohorts} is above the {layers + 1} boundaries of the model's {layers} layers, "
            "at each of which one cohort can be"
        )


def _host_pages(config: LlamaConfig, dtype: jnp.dtype, options: EngineOptions, *, used: int) -> int:
    """Return the pages of the host KV cache; `used` bytes of main memory are the device's, where it is a CPU."""
    if options.host_kv_bytes is None:
        return 0
    token_bytes = shape_of(config, dtype).kv_bytes_per_token
    pages = options.host_kv_bytes // (token_bytes * options.page_size)
    if pages < 2:
        raise ValueError(
            f"host_kv_bytes={options.host_kv_bytes} is less than two pages of the host KV cache, a request's and "
            f"one that it grows into: {options.page_size} tokens of {token_bytes} bytes each"
        )
    free = available_memory() - used
    if options.host_kv_bytes > free:
        raise ValueError(
            f"host_kv_bytes={options.host_kv_bytes} is above the {free} bytes of main memory that are free"
        )
    return pages


def _free_after_weights(config: LlamaConfig, dtype: jnp.dtype, device: jax.Device) -> int:
    weights, free = config.num_parameters * jnp.dtype(dtype).itemsize, free_memory(device)
    if weights > free:
        raise ValueError(
            f"the model's {config.num_parameters} weights take {weights} bytes in {jnp.dtype(dtype)}; "
            f"{device} has {free} bytes free"
        )
    return free - weights


def _check_work(
    work: Work, options: EngineOptions, *, requests: int, prompt_tokens: int, free: int, device: jax.Device
) -> None:
    if work.nbytes(requests=requests, prompt_tokens=prompt_tokens) <= free:
        return
    rows = work.nbytes(requests=requests, prompt_tokens=0)
    prompts = work.nbytes(requests=0, prompt_tokens=prompt_tokens)
    of_rows = "max_num_seqs" if options.host_kv_bytes is None else "max_num_seqs + max_host_seqs"
    name = of_rows if rows > prompts else "max_num_batched_tokens"
    value = requests if rows > prompts else options.max_num_batched_tokens
    raise ValueError(
        f"{name}={value} needs {max(rows, prompts)} bytes for the work of one iteration; {device} has {free} bytes "
        "free beside the weights"
    )


def _pages(
    config: LlamaConfig, dtype: jnp.dtype, options: EngineOptions, *, useful_tokens: int, free: int, device: jax.Device
) -> tuple[int, str]:
    """Return the pages of the KV cache and what decided them."""
    token_bytes = shape_of(config, dtype).kv_bytes_per_token
    page_bytes = token_bytes * options.page_size
    if options.device_kv_tokens is not None:
        pages, budget = options.device_kv_tokens // options.page_size, f"device_kv_tokens={options.device_kv_tokens}"
    elif options.device_kv_bytes is not None:
        pages, budget = options.device_kv_bytes // page_bytes, f"device_kv_bytes={options.device_kv_bytes}"
    else:
        fraction = options.memory_fraction or (HOST_SHARE if _limit(device) is None else DEVICE_SHARE)
        share = int(free * fraction)
        steps = HOST_STEPS if _limit(device) is None else DEVICE_STEPS
        pages = min(coarse(share // page_bytes, steps), -(-useful_tokens // options.page_size))
        budget = f"the free memory of {device} ({share} bytes)"
    if pages < 1:
        raise ValueError(
            f"{budget} is less than one page of the KV cache: {options.page_size} tokens of {token_bytes} bytes each"
        )
    if pages * page_bytes > free:
        raise ValueError(
            f"{budget} is a KV cache of {pages * page_bytes} bytes; beside the weights and the work of one iteration "
            f"{device} has {free} bytes free, which hold {free // page_bytes * options.page_size} tokens"
        )
    return pages, budget


def coarse(count: int, steps: int) -> int:
    """Return the largest count of at most as many that is one of `steps` between two powers of two."""
    unit = max(1, (1 << max(0, count.bit_length() - 1)) // steps)
    return count // unit * unit


def free_memory(device: jax.Device) -> int:
    """Return the bytes of a device's memory that can still be allocated; those of the host for a CPU."""
    limit = _limit(device)
    return available_memory() if limit is None else limit - device.memory_stats()["bytes_in_use"]


def _limit(device: jax.Device) -> int | None:
    """Return the bytes that JAX may allocate in all; None for a CPU, whose memory is the host's and not counted."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform != "cpu":
        raise ValueError(
            f"{device} does not say how much memory it has, as with XLA_PYTHON_CLIENT_ALLOCATOR=platform; leave that "
            "unset, and give other programs room with XLA_PYTHON_CLIENT_MEM_FRACTION"
        )
    return limit
