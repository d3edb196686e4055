"""What somebody may ask of the planner."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..strategies import STRATEGIES


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOptions:
    """What somebody may ask of the planner.

    Attributes:
        max_time_per_token: seconds that no running request should wait longer for a token, in the mean, those included
            that rest on the host; plans that are predicted to break it are ruled out as long as another keeps it, and
            otherwise the least late is taken.
        margin: gain over device_only below which nothing leaves the device.
        loyalty: gain over the present strategy below which it stays.
        patience: tokens' worth of iterations after which a resting host request must be served.
        max_device_requests, max_host_requests: slots there are.
        max_prefill_tokens: prompt tokens of an iteration at most.
        strategies: those that may be chosen beside device_only, which always may.
    """

    max_time_per_token: float | None = None
    margin: float = 0.02
    loyalty: float = 0.01
    patience: int = 8
    max_device_requests: int
    max_host_requests: int
    max_prefill_tokens: int = 2048
    strategies: tuple[str, ...] = STRATEGIES

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            if strategy not in STRATEGIES:
                raise ValueError(f"strategies has {strategy!r}; allowed are {', '.join(STRATEGIES)}")
        limit = self.max_time_per_token
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise ValueError(f"max_time_per_token is {limit}; seconds above 0 are allowed")
        for name in ("margin", "loyalty"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; finite numbers of 0 and more are allowed")
        for name, least in (
            ("patience", 1),
            ("max_device_requests", 1),
            ("max_host_requests", 0),
            ("max_prefill_tokens", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; at least {least} is needed")
