"""The strategies: each an object in a file of its own, which says who rides where and what that takes."""

from .asymmetric_pipelining import ASYMMETRIC_PIPELINING
from .async_overlap import ASYNC_OVERLAP
from .base import Place, Strategy
from .device_only import DEVICE_ONLY
from .fast_lane import FAST_LANE
from .layer_sync import LAYER_SYNC
from .registry import STRATEGIES, named

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
