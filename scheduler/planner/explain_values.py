"""What `explain` says, as plain values for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..cost_model.correction import Measured
from ..cost_model.prediction import Prediction
from ..scheduler_state import Situation
from .candidates import Candidate
from .paper_rule import PaperRule
from .planner import Choice, Planner


def explain_values(planner: Planner) -> dict[str, Any]:
    """Return the last decision and what led to it, of types that JSON has: seconds, tokens a second, counts.

    None stands for what is not: a limit or rule where there is none, the time per token of host requests that get none,
    the end of a course that was not followed to it. Before the first decision there are `machine`, `corrections`,
    `max_time_per_token` and an empty `recent` alone.
    """
    model, key = planner.model, asdict(planner.model.profile.key)
    values: dict[str, Any] = {
        "machine": {**key, "described": model.profile.described},
        "corrections": model.factors._asdict(),
        "max_time_per_token": planner.options.max_time_per_token,
    }
    choice = planner.latest()
    if choice is not None:
        values |= _choice(choice)
        values["before"] = [
            {"strategy": old.decision.strategy, "reason": old.reason} for old in list(planner.choices)[:-1]
        ]
    return {**values, "recent": [_compared(*pair) for pair in model.recent]}


def _choice(choice: Choice) -> dict[str, Any]:
    decision = choice.decision
    courses = [
        {
            "strategy": course.strategy,
            "max_host_requests": course.most,
            "riding": course.riding,
            "rests": course.rests,
            "seconds": _finite(seconds),
        }
        for course, seconds in sorted(choice.courses.items(), key=lambda item: item[1])
    ]
    return {
        "situation": _situation(choice.situation),
        "prompts": asdict(choice.prompts),
        "candidates": _candidates(choice.candidates),
        "target": _candidates(choice.target),
        "courses": courses,
        "rule": None if choice.rule is None else _rule(choice.rule),
        "decision": {**asdict(decision), "lanes": list(decision.lanes), "reason": choice.reason},
    }


def _situation(situation: Situation) -> dict[str, int]:
    return {name: getattr(situation, name) for name in Situation.__dataclass_fields__ if name != "roster"}


def _candidates(candidates: Mapping[str, Candidate]) -> dict[str, dict[str, Any]]:
    return {
        strategy: {
            "cohorts": list(each.under_way),
            "iteration_s": each.iteration_s,
            "device_busy_s": each.device_busy_s,
            "host_busy_s": each.host_busy_s,
            "device_wait_s": each.device_wait_s,
            "tokens_per_s": each.tokens_per_s,
            "compared": each.rate,
            "device_token_s": each.device_token_s,
            "host_token_s": _finite(each.host_token_s),
            "beyond": list(each.beyond),
        }
        for strategy, each in candidates.items()
    }


def _rule(rule: PaperRule) -> dict[str, Any]:
    numbers = {**asdict(rule), "decode_bound": rule.decode_bound, "bound": rule.bound}
    return {**numbers, "decode_holds": rule.rate_ratio < rule.decode_bound, "holds": rule.holds}


def _compared(prediction: Prediction, measured: Measured) -> dict[str, Any]:
    return {
        "strategy": prediction.strategy,
        "predicted_s": prediction.iteration_s,
        "predicted_host_busy_s": prediction.host_busy_s,
        "measured_s": measured.iteration_s,
        "measured_host_busy_s": measured.host_busy_s,
        "extrapolated": prediction.extrapolated,
    }


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
