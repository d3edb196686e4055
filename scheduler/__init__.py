"""Requests, page accounting, plans, the scheduler, and the cost model with its profile: plain data, no JAX.

Who decides by predicted times is in `planner`, serving in virtual time in `simulation`, both together in `experiment`;
what is exported here needs none of them.
"""

from .capacity import Capacity
from .cost_model.correction import Measured
from .cost_model.cost_model import CostModel, Follower
from .cost_model.critical_path import Clock
from .cost_model.curve import AttentionTime, Curve
from .cost_model.hardware import DeviceSpec, HostSpec, ModelShape
from .cost_model.prediction import CohortLoad, Load, Prediction, Terms, plan_pairs, prompt_pairs
from .cost_model.profile import Padding, Profile, ProfileKey
from .cost_model.profile_io import ProfileError, load_profile, save_profile
from .cost_model.roofline import describe
from .page_allocator import OutOfPages, PageAllocator
from .plan import Cohort, DecodeRow, Eviction, Fetch, Landing, NewPages, Plan, PrefillChunk, Stage
from .policy import Decision, FixedPolicy, Policy
from .request import Request, Side
from .scheduler import Scheduler
from .scheduler_state import Roster, Situation
from .strategies import STRATEGIES, Strategy

__all__ = [
    "STRATEGIES",
    "AttentionTime",
    "Capacity",
    "Clock",
    "Cohort",
    "CohortLoad",
    "CostModel",
    "Curve",
    "Decision",
    "DecodeRow",
    "DeviceSpec",
    "Eviction",
    "Fetch",
    "FixedPolicy",
    "Follower",
    "HostSpec",
    "Landing",
    "Load",
    "Measured",
    "ModelShape",
    "NewPages",
    "OutOfPages",
    "Padding",
    "PageAllocator",
    "Plan",
    "Policy",
    "Prediction",
    "PrefillChunk",
    "Profile",
    "ProfileError",
    "ProfileKey",
    "Request",
    "Roster",
    "Scheduler",
    "Side",
    "Situation",
    "Stage",
    "Strategy",
    "Terms",
    "describe",
    "load_profile",
    "plan_pairs",
    "prompt_pairs",
    "save_profile",
]
