"""All strategies, by name. A new one is a file of its own and an entry here."""

from __future__ import annotations

from .asymmetric_pipelining import ASYMMETRIC_PIPELINING
from .async_overlap import ASYNC_OVERLAP
from .base import Strategy
from .device_only import DEVICE_ONLY
from .fast_lane import FAST_LANE
from .layer_sync import LAYER_SYNC

_ALL = (DEVICE_ONLY, LAYER_SYNC, ASYMMETRIC_PIPELINING, ASYNC_OVERLAP, FAST_LANE)
"""Those that bind requests for longer stand later."""

_BY_NAME = {strategy.name: strategy for strategy in _ALL}

STRATEGIES = tuple(_BY_NAME)
"""Their names."""


def named(name: str) -> Strategy:
    """Return a strategy.

    Raises:
        ValueError: there is none of that name.
    """
    strategy = _BY_NAME.get(name)
    if strategy is None:
        raise ValueError(f"there is no strategy {name!r}; the strategies are {', '.join(STRATEGIES)}")
    return strategy
