"""What somebody may ask of the planner, and what nobody has to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..strategies import STRATEGIES

MARGIN = 0.02
"""Gain over device_only below which nothing leaves the device."""

LOYALTY = 0.01
"""Gain over the present strategy below which it stays."""

PATIENCE = 8
"""Tokens' worth of iterations after which a resting host request must be served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOptions:
    """What somebody may ask of the planner.

    Attributes:
        max_time_per_token: seconds that no running request should wait longer for a token, in the mean, those included
            that rest on the host; plans that are predicted to break it are ruled out as long as another keeps it, and
            otherwise the least late is taken.
        strategies: those that may be chosen beside device_only, which always may.
    """

    max_time_per_token: float | None = None
    strategies: tuple[str, ...] = STRATEGIES

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            if strategy not in STRATEGIES:
                raise ValueError(f"strategies has {strategy!r}; allowed are {', '.join(STRATEGIES)}")
        limit = self.max_time_per_token
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise ValueError(f"max_time_per_token is {limit}; seconds above 0 are allowed")
