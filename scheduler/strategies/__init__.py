"""The strategies: each an object in a file of its own, which says who rides where and what that takes.

A new one is a file and an entry here.
"""

from .asymmetric_pipelining import ASYMMETRIC_PIPELINING
from .async_overlap import ASYNC_OVERLAP
from .base import Place, Strategy
from .device_only import DEVICE_ONLY
from .fast_lane import FAST_LANE
from .layer_sync import LAYER_SYNC

__all__ = [
    "ASYMMETRIC_PIPELINING",
    "ASYNC_OVERLAP",
    "DEVICE_ONLY",
    "FAST_LANE",
    "LAYER_SYNC",
    "STRATEGIES",
    "Place",
    "Strategy",
    "named",
]

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
