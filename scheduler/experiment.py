"""A simulated engine by name: a device, a host and a model, how much KV each side holds, and the strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from .capacity import Capacity
from .cost_model.cost_model import CostModel
from .cost_model.hardware import DeviceSpec, HostSpec, ModelShape, device_kv_tokens
from .cost_model.profile import Padding
from .cost_model.roofline import describe
from .planner.options import PlannerOptions
from .planner.planner import Planner
from .policy import FixedPolicy, Policy
from .simulation.metrics import Simulated
from .simulation.simulator import simulate
from .simulation.workload import Job
from .strategies import DEVICE_ONLY, STRATEGIES

DEVICE_FRACTION = 0.9
"""Share of device memory that an engine takes: the default of this engine and of others."""

WORKSPACE_GB = 0.3
"""Device memory for activations (2,048 rows of a 7B model's widest layer take 0.1 GB) and libraries."""

HOST_FRACTION = 0.9
"""Share of host memory for KV."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A simulated engine.

    Attributes:
        device, host, model: see `Catalogue`.
        strategy: `auto`, `device_only`, or a hybrid one, which is used where it is predicted to beat device_only.
        device_kv_tokens: KV on the device; what fits beside the weights if None.
        host_kv_gb: KV on the host in 1e9 bytes; 90 % of its memory if None.
        page_size, max_prefill_tokens, max_num_seqs: see `Capacity`.
        prefill_alone: prompts are computed in iterations of their own, while decoding requests rest.
        iteration_overhead_s: what every iteration takes beside its work.
        max_time_per_token: see `PlannerOptions`; None for no limit.
        padding: the batch sizes that programs are compiled for; None where a batch costs what its own rows do.

    Raises:
        ValueError: a value is out of range, there is a limit and nothing to choose, or the model leaves no room on the
            device.
    """

    device: DeviceSpec
    host: HostSpec
    model: ModelShape
    strategy: str = "auto"
    device_kv_tokens: int | None = None
    host_kv_gb: float | None = None
    page_size: int = 16
    max_prefill_tokens: int = 1024
    max_num_seqs: int = 256
    prefill_alone: bool = False
    iteration_overhead_s: float = 0.0
    max_time_per_token: float | None = None
    padding: Padding | None = None

    def __post_init__(self) -> None:
        if self.strategy != "auto" and self.strategy not in STRATEGIES:
            raise ValueError(f"strategy is {self.strategy!r}; allowed are auto, {', '.join(STRATEGIES)}")
        if self.max_time_per_token is not None and self.strategy == DEVICE_ONLY.name:
            raise ValueError(
                f"max_time_per_token={self.max_time_per_token} chooses among plans; with strategy device_only there is "
                "nothing to choose"
            )
        sizes = (("host_kv_gb", "above"), ("iteration_overhead_s", "of at least"), ("max_time_per_token", "above"))
        for name, least in sizes:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and (value > 0 or (value == 0 and least != "above"))):
                raise ValueError(f"{name} is {value!r}; a number {least} 0 is needed")
        _ = self.capacity

    @cached_property
    def capacity(self) -> Capacity:
        """The memory of both sides, and the requests that it is for."""
        tokens = self.device_kv_tokens
        if tokens is None:
            tokens = device_kv_tokens(
                self.device, self.model, memory_fraction=DEVICE_FRACTION, workspace_gb=WORKSPACE_GB
            )
        host_gb = self.host.memory_gb * HOST_FRACTION if self.host_kv_gb is None else self.host_kv_gb
        capacity = Capacity(
            device_kv_tokens=tokens,
            host_kv_tokens=0 if self.strategy == DEVICE_ONLY.name else self._tokens(host_gb),
            page_size=self.page_size,
            max_num_seqs=self.max_num_seqs,
            max_prefill_tokens=self.max_prefill_tokens,
        )
        # As many as have a page: memory alone bounds them.
        return replace(capacity, max_host_seqs=capacity.host_pages)

    @cached_property
    def cost_model(self) -> CostModel:
        """What iterations take."""
        profile = describe(self.device, self.host, self.model, page_size=self.page_size, padding=self.padding)
        overhead = profile.iteration_overhead + self.iteration_overhead_s
        return CostModel(replace(profile, iteration_overhead=overhead))

    @property
    def longest(self) -> int:
        """Tokens of prompt and output that a request may have together."""
        return self.capacity.longest + 1

    def policy(self) -> Policy:
        """Return a fresh policy for the strategy."""
        if self.strategy == DEVICE_ONLY.name:
            return FixedPolicy(strategy=DEVICE_ONLY.name)
        return self.planner(STRATEGIES if self.strategy == "auto" else (self.strategy,))

    def planner(self, strategies: tuple[str, ...]) -> Planner:
        """Return a fresh planner that chooses among these strategies and device_only."""
        options = PlannerOptions(strategies=strategies, max_time_per_token=self.max_time_per_token)
        return Planner(self.cost_model, self.capacity, options)

    def run(
        self,
        jobs: Sequence[Job],
        *,
        policy: Policy | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Simulated:
        """Return what serving the jobs takes.

        Args:
            jobs: the requests.
            policy: decides instead of the strategy's own.
            progress: told how many more requests have ended.

        Raises:
            ValueError: there are no jobs, or one can never fit on the device.
        """
        return simulate(
            jobs,
            self.capacity,
            self.cost_model,
            policy or self.policy(),
            prefill_alone=self.prefill_alone,
            progress=progress,
        )

    def described(self) -> dict[str, object]:
        """Return the names and sizes, for people and files."""
        kv_bytes = self.model.kv_bytes_per_token
        return {
            "device": self.device.name,
            "host": self.host.name,
            "model": self.model.name,
            "strategy": self.strategy,
            "device_kv_tokens": self.capacity.device_kv_tokens,
            "host_kv_gb": round(self.capacity.host_kv_tokens * kv_bytes / 1e9, 3),
            "host_attention_gb_per_s": self.host.attention_gb_per_s,
            "page_size": self.page_size,
            "max_prefill_tokens": self.max_prefill_tokens,
            "prefill_alone": self.prefill_alone,
            "iteration_overhead_ms": self.iteration_overhead_s * 1e3,
            "max_time_per_token": self.max_time_per_token,
            "pad_batches": self.padding is not None,
        }

    def _tokens(self, gigabytes: float) -> int:
        return int(gigabytes * 1e9 // self.model.kv_bytes_per_token)
