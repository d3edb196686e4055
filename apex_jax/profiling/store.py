"""Measured profiles in the user's cache folder: what they are valid for, and measuring where none is."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp

from ..execution.batch import padding_of
from ..execution.executor import Executor
from ..execution.model_shape import shape_of
from ..machine.processor import processor_and_cores
from ..models.config import LlamaConfig
from ..models.loading.registry import cache_folder
from ..progress_bar import Bar
from ..scheduler import ModelShape, Profile, ProfileError, ProfileKey, load_profile, save_profile
from .probe_sizes import ProfileSizes
from .profiler import Profiler

AGAIN = "to measure anew: `apex-jax profile --again` with this engine's options, or LLM(..., auto_profile=True)"

_logger = logging.getLogger(__name__)


def profile_key(
    shape: ModelShape, dtype: jnp.dtype, device: jax.Device, *, attention: str, page_size: int
) -> ProfileKey:
    """Return what a profile of this machine is valid for.

    Args:
        shape: of the model.
        dtype: of weights and KV cache.
        device: the accelerator.
        attention: name of the device's decode attention.
        page_size: tokens in a page.
    """
    host = processor_and_cores()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("apex-jax", "jax", "jaxlib"))
    return ProfileKey(
        device=host if device.platform == "cpu" else device.device_kind,
        host=host,
        model=str(shape),
        dtypes=f"{jnp.dtype(dtype)} weights and KV in pages of {page_size}",
        software=f"{libraries}, {attention} attention on the device",
    )


def profile_path(key: ProfileKey) -> Path:
    """Return where the profile of a key is kept."""
    digest = hashlib.sha256("\n".join(astuple(key)).encode()).hexdigest()[:10]
    name = re.sub(r"[^a-z0-9]+", "-", f"{key.device} {key.model}".lower()).strip("-")
    return cache_folder() / "profiles" / f"{name}-{digest}.json"


def keep_profile(profile: Profile) -> Path:
    """Write a profile where it will be looked for; returns the path.

    Raises:
        OSError: it cannot be written.
    """
    path = profile_path(profile.key)
    save_profile(profile, path)
    return path


class ProfileStore:
    """The kept profile of an executor's model on this machine, and how to measure one.

    Args:
        executor: of the model; it serves nobody while something is measured.
        config: the model.
        dtype: of weights and KV cache.
        device: the accelerator.
        attention: name of the device's decode attention.
    """

    def __init__(
        self, executor: Executor, config: LlamaConfig, dtype: jnp.dtype, *, device: jax.Device, attention: str
    ) -> None:
        self._executor = executor
        self._shape = shape_of(config, dtype)
        self._dtype = dtype
        self._device = device
        self._attention = attention

    @cached_property
    def key(self) -> ProfileKey:
        """What the profile is valid for."""
        page_size = self._executor.buckets.page_size
        return profile_key(self._shape, self._dtype, self._device, attention=self._attention, page_size=page_size)

    def find(self, *, whole: bool = False) -> Profile | None:
        """Return the kept profile with the batch sizes of the executor, or None if none is kept.

        Says, as a warning of this module's logger, what the executor can hold and the profile does not cover.

        Args:
            whole: refuse a profile that does not cover everything that would be measured now.

        Raises:
            ProfileError: the one that is kept cannot be used: it is no whole profile, is not what its key says, was not
                measured, or the executor has larger batches than were measured.
        """
        path = profile_path(self.key)
        if not os.path.isfile(path):
            return None
        try:
            profile = load_profile(path, self.key)
            self._check(profile, path)
            beyond = _beyond(profile, self._executor)
            if beyond and whole:
                raise ProfileError(f"{path} covers less than this engine can hold: {'; '.join(beyond)}")
        except ProfileError as error:
            raise ProfileError(f"{error}; {AGAIN}") from error
        if beyond:
            _logger.warning(
                "%s covers less than this engine can hold, and goes on as over its upper halves: %s; %s",
                path,
                "; ".join(beyond),
                AGAIN,
            )
        return replace(profile, padding=padding_of(self._executor.buckets))

    def ready(self, *, again: bool = False, repair: bool = False, use_tqdm: bool = False) -> Profile:
        """Return the profile that is kept, or else one that is measured now, and kept where that can be.

        Args:
            again: measure even if one is kept.
            repair: measure if the one that is kept cannot be used, or covers less than would be measured.
            use_tqdm: show a progress bar while measuring.

        Raises:
            ProfileError: the one that is kept cannot be used, and neither `again` nor `repair` replaces it.
            ValueError: the executor has no host tier.
            OSError: the profile that is kept cannot be read. One that cannot be written is a warning.
        """
        unusable = None
        try:
            kept = None if again else self.find(whole=repair)
        except ProfileError as error:
            if not repair:
                raise
            kept, unusable = None, error
        if kept is not None:
            return kept
        with Bar(desc="Profiling", unit=" points", disable=not use_tqdm) as bar:
            if unusable is not None and use_tqdm:
                bar.write(str(unusable), file=sys.stderr)
            profiler = self._profiler(bar.update)
            bar.total = profiler.sizes.count
            profile = profiler.measure()
        try:
            keep_profile(profile)
        except OSError as error:
            _logger.warning("The profile is used and not kept, since it cannot be written: %s", error)
        return profile

    def _profiler(self, on_point: Callable[[], object]) -> Profiler:
        return Profiler(
            self._executor,
            self.key,
            kv_bytes_per_token=self._shape.kv_bytes_per_token,
            pre_share=self._shape.pre_weights / self._shape.layer_weights,
            on_point=on_point,
        )

    def _check(self, profile: Profile, path: Path) -> None:
        """Refuse a profile that is not this engine's, whatever its key says."""
        if profile.described:
            raise ProfileError(f"{path} is described by rates; a measured profile is needed")
        executor = self._executor
        sizes = (
            ("num_layers", profile.num_layers, executor.device.num_layers),
            ("page_size", profile.page_size, executor.buckets.page_size),
            ("kv_bytes_per_token", profile.kv_bytes_per_token, self._shape.kv_bytes_per_token),
        )
        if wrong := [f"{name} is {there}, needed is {here}" for name, there, here in sizes if there != here]:
            raise ProfileError(f"{path} is not what its key says: {'; '.join(wrong)}")
        rows = executor.buckets.decode_rows[-1]
        if not profile.layer.covers(rows):
            # Between rows there are steps, which no line continues.
            most = profile.layer.points[-1][0]
            raise ProfileError(f"{path} covers batches of up to {most:,.0f} rows; needed are {rows:,}")


def _beyond(profile: Profile, executor: Executor) -> list[str]:
    """Return what would be measured for an executor and the profile does not cover, in words."""
    if executor.worker is None:
        return []
    buckets, page = executor.buckets, executor.buckets.page_size
    sizes = ProfileSizes.of(buckets)
    device, host = profile.device_attention.tokens, profile.host_attention
    reads = [
        ("rows of a pass", profile.layer, sizes.prompts[-1] + buckets.mixed_rows[-1]),
        ("rows that sample", profile.head, sizes.head_rows[-1]),
        ("cached tokens on the device", device, sizes.attention_rows * sizes.attention_lengths[-1]),
        ("pairs of prompt tokens", profile.prefill_attention, sizes.pairs),
        ("rows of a cohort", host.rows, sizes.job_rows[-1]),
        ("cached tokens of a cohort", host.tokens, sizes.length_rows * (page, *sizes.host_lengths)[-1]),
        ("rows of a handover", profile.hop, sizes.host_rows[-1]),
    ]
    if sizes.moved_pages:
        reads.append(("tokens that move", profile.migration, sizes.moved_pages[-1] * page))
    return [curve.outside(count, name) for name, curve, count in reads if not curve.covers(count)]
