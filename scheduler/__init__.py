"""Requests, page accounting, plans, the cost model that chooses among them, and the scheduler: plain data, no JAX."""

from .cost_model import CostModel
from .curve import AttentionTime, Curve
from .page_table import OutOfPages, PageTable
from .plan import DecodeRow, NewPages, Plan, PrefillChunk
from .prediction import CohortLoad, Load, Prediction, Terms, prompt_pairs
from .profile import Padding, Profile, ProfileKey
from .profile_file import ProfileError, load_profile, save_profile
from .rates import DeviceRates, HostRates, ModelShape, describe
from .request import Request
from .scheduler import Scheduler
from .walk import Clock

__all__ = [
    "AttentionTime",
    "Clock",
    "CohortLoad",
    "CostModel",
    "Curve",
    "DecodeRow",
    "DeviceRates",
    "HostRates",
    "Load",
    "ModelShape",
    "NewPages",
    "OutOfPages",
    "Padding",
    "PageTable",
    "Plan",
    "Prediction",
    "PrefillChunk",
    "Profile",
    "ProfileError",
    "ProfileKey",
    "Request",
    "Scheduler",
    "Terms",
    "describe",
    "load_profile",
    "prompt_pairs",
    "save_profile",
]
