"""Settings of an engine: how many requests at once, how much KV cache, where."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from numbers import Integral, Real

import jax

from .scheduler.strategies import DEVICE_ONLY, STRATEGIES

PAGE_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine uses its device.

    Attributes:
        max_model_len: longest context in tokens, prompt and output, within the model's own limit and what the KV cache
            holds; whichever of these is less if None.
        max_num_seqs: requests that run on the device at once; 16 on a CPU and 64 on an accelerator if None. With a host
            tier `max_host_seqs` more run on the host.
        max_num_batched_tokens: prompt tokens computed in one iteration, beside the decoding requests.
        device_kv_tokens: size of the device KV cache in tokens.
        device_kv_bytes: the same in bytes; give one of the two or neither.
        memory_fraction: share of the device's free memory for the KV cache if its size is not given; 0.9 on an
            accelerator and 0.125 on a CPU if None.
        page_size: tokens in a page of the KV cache: 16, 32, 64 or 128.
        host_kv_bytes: size of the host KV cache, in main memory: requests that the device has no pages or rows for live
            there and have their attention computed by the CPU. It holds more requests, not longer ones, since each is
            prefilled on the device. None for no host tier.
        max_host_seqs: requests that live there at once; four times `max_num_seqs` if None.
        strategy: how the device's and the host's work go together: one of `apex_jax.scheduler.STRATEGIES`, or
            "auto": what a cost model predicts to be fastest, iteration by iteration. Without a host tier there is only
            "device_only", and "auto" means that.
        num_cohorts: groups in which the host requests of "async_overlap" advance, each at another layer: 1 to L + 1, or
            2 if None; with "auto" the cost model chooses.
        max_time_per_token: with "auto" and a host tier, seconds that no running request should wait longer for a token,
            in the mean. Plans that are predicted to break it are ruled out; so is leaving requests on the host without
            tokens. As many requests go there as keep it. Where no plan keeps it the least late is taken, and
            `LLM.explain` says so. It bounds neither how long a request waits for its first token nor how many run on
            the device: that is what `max_num_seqs` is for.
        auto_profile: with "auto", measure this machine and model at the start if no profile of them is kept, which
            takes a minute; otherwise assumed rates are corrected as iterations run.
        compilation_cache: folder in which JAX keeps compiled programs for the next start; "default" for one under
            `$APEX_JAX_CACHE`, None for none. It is JAX's own cache, of the whole process; where a program has set
            `jax_compilation_cache_dir`, that stays.
        device: where the model runs; `jax.default_device` where the `LLM` is made, or JAX's first, if None.
        seed: requests without a seed of their own get one drawn from this.

    Raises:
        TypeError, ValueError: a value is of the wrong type or out of range.
    """

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int = 512
    device_kv_tokens: int | None = None
    device_kv_bytes: int | None = None
    memory_fraction: float | None = None
    page_size: int = 64
    host_kv_bytes: int | None = None
    max_host_seqs: int | None = None
    strategy: str = "auto"
    num_cohorts: int | None = None
    max_time_per_token: float | None = None
    auto_profile: bool = False
    compilation_cache: str | os.PathLike[str] | None = "default"
    device: jax.Device | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("max_model_len", "max_num_seqs", "device_kv_tokens", "device_kv_bytes")
        for name in ("max_num_batched_tokens", *counts, "host_kv_bytes", "max_host_seqs", "num_cohorts"):
            optional = name != "max_num_batched_tokens"
            if not (optional and getattr(self, name) is None):
                self._check_integer(name, 1, f"a positive integer{' or None' if optional else ''}")
        self._check_integer("seed", 0, "an integer of at least 0")
        self._check_integer("page_size", 1, f"one of {', '.join(map(str, PAGE_SIZES))}")
        if self.page_size not in PAGE_SIZES:
            raise ValueError(f"page_size must be one of {', '.join(map(str, PAGE_SIZES))}, got {self.page_size!r}")
        if self.device_kv_tokens is not None and self.device_kv_bytes is not None:
            raise ValueError(
                "give device_kv_tokens or device_kv_bytes, not both: "
                f"got {self.device_kv_tokens} tokens and {self.device_kv_bytes} bytes"
            )
        self._check_host()
        if not isinstance(self.compilation_cache, str | os.PathLike | None) or self.compilation_cache == "":
            raise TypeError(f'compilation_cache must be a folder, "default" or None, got {self.compilation_cache!r}')
        fraction = self.memory_fraction
        if fraction is not None and (
            isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < fraction <= 1
        ):
            raise ValueError(f"memory_fraction must be above 0 and at most 1, got {fraction!r}")
        if self.device is not None and not isinstance(self.device, jax.Device):
            found = ", ".join(str(device) for device in jax.devices())
            raise TypeError(
                "device must be a jax.Device such as jax.devices()[0] or jax.devices('cpu')[0], or None; "
                f"got {self.device!r}; JAX's devices here: {found}"
            )

    def _check_host(self) -> None:
        limit = self.max_time_per_token
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, Real) or not 0 < float(limit) < math.inf
        ):
            raise ValueError(f"max_time_per_token must be seconds above 0, or None, got {limit!r}")
        if not isinstance(self.auto_profile, bool):
            raise TypeError(f"auto_profile must be True or False, got {self.auto_profile!r}")
        if self.strategy not in ("auto", *STRATEGIES):
            allowed = ", ".join(("auto", *STRATEGIES))
            raise ValueError(f"strategy must be one of {allowed}, got {self.strategy!r}")
        if self.host_kv_bytes is None:
            if self.strategy not in ("auto", DEVICE_ONLY.name):
                raise ValueError(f"strategy={self.strategy!r} needs a host KV cache: give host_kv_bytes")
            for name in ("max_host_seqs", "num_cohorts"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)} needs a host KV cache: give host_kv_bytes")
        if limit is not None and (self.strategy != "auto" or self.host_kv_bytes is None):
            raise ValueError(
                f"max_time_per_token={limit} chooses among plans: it needs strategy 'auto' and host_kv_bytes, "
                f"got strategy={self.strategy!r}, host_kv_bytes={self.host_kv_bytes}"
            )

    def _check_integer(self, name: str, least: int, wanted: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
        object.__setattr__(self, name, int(value))
