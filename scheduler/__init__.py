"""Requests, page accounting, plans, the cost model that chooses among them, and the scheduler: plain data, no JAX."""

from .correction import Measured
from .cost_model import CostModel
from .curve import AttentionTime, Curve
from .explain import explain
from .explain_values import explain_values
from .follow import Follower
from .page_table import OutOfPages, PageTable
from .paper_rule import PaperRule, pipelining_bound
from .plan import (
    STRATEGIES,
    Cohort,
    DecodeRow,
    Eviction,
    Fetch,
    Landing,
    NewPages,
    Plan,
    PrefillChunk,
    Stage,
    Strategy,
)
from .planner import Choice, Planner
from .planner_options import PlannerOptions
from .policy import Decision, FixedPolicy, Policy, Situation
from .prediction import CohortLoad, Load, Prediction, Terms, prompt_pairs
from .profile import Padding, Profile, ProfileKey
from .profile_file import ProfileError, load_profile, save_profile
from .rates import DeviceRates, HostRates, ModelShape, describe
from .request import Request, Side
from .roster import Roster
from .scheduler import Scheduler
from .walk import Clock

__all__ = [
    "STRATEGIES",
    "AttentionTime",
    "Choice",
    "Clock",
    "Cohort",
    "CohortLoad",
    "CostModel",
    "Curve",
    "Decision",
    "DecodeRow",
    "DeviceRates",
    "Eviction",
    "Fetch",
    "FixedPolicy",
    "Follower",
    "HostRates",
    "Landing",
    "Load",
    "Measured",
    "ModelShape",
    "NewPages",
    "OutOfPages",
    "Padding",
    "PageTable",
    "PaperRule",
    "Plan",
    "Planner",
    "PlannerOptions",
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
    "explain",
    "explain_values",
    "load_profile",
    "pipelining_bound",
    "prompt_pairs",
    "save_profile",
]
