"""Settings of an engine: how many requests at once, how much KV cache, where."""

from __future__ import annotations

from dataclasses import dataclass

import jax

PAGE_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine uses its device.

    Attributes:
        max_model_len: longest context in tokens, prompt and output; the model's own limit or what the KV cache holds,
            whichever is less, if None.
        max_num_seqs: requests that run at once; 16 on a CPU and 64 on an accelerator if None.
        max_num_batched_tokens: prompt tokens computed in one iteration, beside the decoding requests.
        device_kv_tokens: size of the device KV cache in tokens.
        device_kv_bytes: the same in bytes; give one of the two or neither.
        memory_fraction: share of the device's free memory for the KV cache if its size is not given.
        page_size: tokens in a page of the KV cache: 16, 32, 64 or 128.
        device: where the model runs; JAX's default device if None.
        seed: requests without a seed of their own get one drawn from this.

    Raises:
        ValueError: a value is out of range.
    """

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int = 512
    device_kv_tokens: int | None = None
    device_kv_bytes: int | None = None
    memory_fraction: float = 0.9
    page_size: int = 64
    device: jax.Device | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "device_kv_tokens", "device_kv_bytes")
        for name in counts:
            value = getattr(self, name)
            optional = name != "max_num_batched_tokens"
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer{' or None' if optional else ''}, got {value!r}")
        if self.device_kv_tokens is not None and self.device_kv_bytes is not None:
            raise ValueError(
                "give device_kv_tokens or device_kv_bytes, not both: "
                f"got {self.device_kv_tokens} tokens and {self.device_kv_bytes} bytes"
            )
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(f"memory_fraction must be above 0 and at most 1, got {self.memory_fraction!r}")
        if self.page_size not in PAGE_SIZES:
            raise ValueError(f"page_size must be one of {', '.join(map(str, PAGE_SIZES))}, got {self.page_size!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {self.seed!r}")
