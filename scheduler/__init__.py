"""Requests, page accounting, plans, the cost model that chooses among them, and the scheduler: plain data, no JAX."""

from .cost_model.correction import Measured
from .cost_model.cost_model import CostModel
from .cost_model.critical_path import Clock
from .cost_model.curve import AttentionTime, Curve
from .cost_model.online_correction import Follower
from .cost_model.prediction import CohortLoad, Load, Prediction, Terms, prompt_pairs
from .cost_model.profile import Padding, Profile, ProfileKey
from .cost_model.profile_io import ProfileError, load_profile, save_profile
from .cost_model.rates import DeviceRates, HostRates, ModelShape, describe
from .page_allocator import OutOfPages, PageTable
from .plan import STRATEGIES, Cohort, DecodeRow, Eviction, Fetch, Landing, NewPages, Plan, PrefillChunk, Stage, Strategy
from .planner.explain import explain
from .planner.explain_values import explain_values
from .planner.options import PlannerOptions
from .planner.paper_rule import PaperRule, pipelining_bound
from .planner.planner import Choice, Planner
from .policy import Decision, FixedPolicy, Policy, Situation
from .request import Request, Side
from .roster import Roster
from .scheduler import Scheduler

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
