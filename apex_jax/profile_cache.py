"""Measured profiles in the user's cache folder: what they are valid for, and measuring where none is."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp

from .emulated_device import padding_of
from .executor import Executor
from .memory import kv_bytes_per_token
from .models.config import LlamaConfig
from .models.registry import cache_folder
from .processor import processor_name, usable_cores
from .profiling import Profiler
from .progress_bar import Bar
from .scheduler import Profile, ProfileError, ProfileKey, load_profile, save_profile


def profile_key(
    config: LlamaConfig, dtype: jnp.dtype, device: jax.Device, *, attention: str, page_size: int
) -> ProfileKey:
    """Return what a profile of this machine is valid for.

    Args:
        config: the model, of which the sizes count.
        dtype: of weights and KV cache.
        device: the accelerator.
        attention: name of the device's decode attention.
        page_size: tokens in a page.
    """
    host = f"{processor_name()}, {usable_cores()} cores"
    sizes = {
        "L": config.num_hidden_layers,
        "D": config.hidden_size,
        "N": config.num_attention_heads,
        "K": config.num_key_value_heads,
        "H": config.head_dim,
        "F": config.intermediate_size,
        "V": config.vocab_size,
    }
    libraries = ", ".join(f"{name} {version(name)}" for name in ("apex-jax", "jax", "jaxlib"))
    return ProfileKey(
        device=host if device.platform == "cpu" else device.device_kind,
        host=host,
        model=" ".join(f"{letter}{size}" for letter, size in sizes.items()),
        dtypes=f"{jnp.dtype(dtype)} weights and KV in pages of {page_size}",
        software=f"{libraries}, {attention} attention on the device",
    )


def profile_path(key: ProfileKey) -> Path:
    """Return where the profile of a key is kept."""
    digest = hashlib.sha256("\n".join(astuple(key)).encode()).hexdigest()[:10]
    name = re.sub(r"[^a-z0-9]+", "-", f"{key.device} {key.model}".lower()).strip("-")
    return cache_folder() / "profiles" / f"{name}-{digest}.json"


def profiler(
    executor: Executor, config: LlamaConfig, dtype: jnp.dtype, key: ProfileKey, on_point: Callable[[], object]
) -> Profiler:
    """Return what measures the profile of a key on an executor of that model.

    Raises:
        ValueError: the executor has no host tier.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    before = config.hidden_size * (heads + 2 * kv_heads) * config.head_dim
    after = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    return Profiler(
        executor,
        key,
        kv_bytes_per_token=kv_bytes_per_token(config, dtype),
        pre_share=before / (before + after),
        on_point=on_point,
    )


def find_profile(executor: Executor, key: ProfileKey) -> Profile | None:
    """Return the kept profile of a key with the batch sizes of an executor, or None if none is kept.

    Raises:
        ProfileError: the one that is kept cannot be used, because it is no whole profile, or because the executor has
            larger batches than were measured.
    """
    path = profile_path(key)
    if not path.is_file():
        return None
    try:
        profile = replace(load_profile(path, key), padding=padding_of(executor.buckets))
    except ProfileError as error:
        raise ProfileError(f"{error}; `apex-jax profile --again` measures it anew") from error
    rows, most = executor.buckets.decode_rows[-1], profile.layer.points[-1][0]
    if not profile.layer.covers(rows):
        raise ProfileError(
            f"{path} covers batches of up to {most:.0f} rows; needed are {rows}; `apex-jax profile --again` measures "
            "it anew"
        )
    return profile


def keep_profile(profile: Profile) -> Path:
    """Write a profile where `find_profile` looks for it; returns the path.

    Raises:
        OSError: it cannot be written.
    """
    path = profile_path(profile.key)
    save_profile(profile, path)
    return path


def ready_profile(
    executor: Executor,
    config: LlamaConfig,
    dtype: jnp.dtype,
    key: ProfileKey,
    *,
    again: bool = False,
    repair: bool = False,
    use_tqdm: bool = False,
) -> Profile:
    """Return the profile of a key: the one that is kept, or else one that is measured now and kept.

    Args:
        executor: serves nobody.
        config, dtype: its model.
        key: what the profile must be valid for.
        again: measure even if one is kept.
        repair: measure if the one that is kept cannot be used.
        use_tqdm: show a progress bar while measuring.

    Raises:
        ProfileError: the one that is kept cannot be used, and neither `again` nor `repair` replaces it.
        ValueError: the executor has no host tier.
        OSError: the profile cannot be read or written.
    """
    unusable = None
    try:
        kept = None if again else find_profile(executor, key)
    except ProfileError as error:
        if not repair:
            raise
        kept, unusable = None, error
    if kept is not None:
        return kept
    with Bar(desc="Profiling", unit=" points", disable=not use_tqdm) as bar:
        if unusable is not None and use_tqdm:
            bar.write(str(unusable), file=sys.stderr)
        measuring = profiler(executor, config, dtype, key, bar.update)
        bar.total = measuring.sizes.count
        profile = measuring.measure()
    keep_profile(profile)
    return profile
