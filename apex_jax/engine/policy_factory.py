"""Who decides about strategies, and from which profile."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from ..execution.batch import padding_of
from ..execution.executor import Executor
from ..execution.model_shape import shape_of
from ..models.config import LlamaConfig
from ..options import EngineOptions
from ..scheduler import (
    CostModel,
    DeviceSpec,
    FixedPolicy,
    Follower,
    HostSpec,
    Policy,
    Profile,
    ProfileKey,
    describe,
)
from ..scheduler.cost_model.catalogue import Catalogue
from ..scheduler.planner.options import PlannerOptions
from ..scheduler.planner.planner import Planner
from ..scheduler.policy import DEFAULT_COHORTS
from ..scheduler.strategies import DEVICE_ONLY

ASSUMED_CPU = DeviceSpec(
    name="CPU of assumed rates",
    memory_gb=16,
    weights_gb_per_s=20,
    attention_gb_per_s=20,
    tflops=0.1,
    link_gb_per_s=8,
    link_us=100,
)
"""Where the device is a CPU: a few cores' rates."""

ASSUMED_HOST = HostSpec(name="CPU of assumed rates", cores=1, memory_gb=16, attention_gb_per_s=25, job_us=50)

ASSUMED = "rates are assumed and corrected; `apex-jax profile` measures them"
"""What the explanation says of a machine whose profile nobody has measured."""

UNKNOWN_ACCELERATOR = "a10"
"""Whose rates stand in for an accelerator that the catalogue does not know."""


def fixed_policy(executor: Executor, options: EngineOptions) -> FixedPolicy | None:
    """Return the policy of the strategy that was asked for, or of the only one without a host tier; None for "auto"."""
    if executor.worker is None:
        return FixedPolicy(strategy=DEVICE_ONLY.name)
    if options.strategy == "auto":
        return None
    return FixedPolicy(
        strategy=options.strategy,
        num_cohorts=options.num_cohorts or DEFAULT_COHORTS,
        max_host_requests=executor.buckets.capacity.max_host_seqs,
    )


def follower_of(policy: Policy) -> Follower | None:
    """Return what teaches a planner's cost model; None for a policy that has none."""
    return Follower(policy.model) if isinstance(policy, Planner) else None


def planner_of(profile: Profile, executor: Executor, options: EngineOptions) -> Planner:
    """Return a planner for an executor's sizes that begins with a profile."""
    wishes = PlannerOptions(max_time_per_token=options.max_time_per_token)
    return Planner(CostModel(profile), executor.buckets.capacity, wishes)


def assumed_profile(
    executor: Executor, config: LlamaConfig, dtype: jnp.dtype, key: ProfileKey, *, device: jax.Device
) -> Profile:
    """Return a profile of this model for rates that nobody measured here."""
    spec = ASSUMED_CPU if device.platform == "cpu" else _accelerator(device.device_kind)
    buckets, shape = executor.buckets, shape_of(config, dtype)
    profile = describe(spec, ASSUMED_HOST, shape, page_size=buckets.page_size, padding=padding_of(buckets))
    return replace(profile, key=replace(key, software=ASSUMED))


def _accelerator(kind: str) -> DeviceSpec:
    devices = Catalogue.built_in().devices
    words = kind.lower().replace(" ", "-").split("-")
    # Longer names first: "a10g" is no "a10".
    for name in sorted(devices, key=len, reverse=True):
        if all(part in words for part in name.split("-")):
            return devices[name]
    return replace(devices[UNKNOWN_ACCELERATOR], name=f"{kind}, rates assumed")
