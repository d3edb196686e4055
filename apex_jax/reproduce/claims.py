"""What the paper reports (arXiv 2506.03296), and how a simulated band compares with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..scheduler.strategies import DEVICE_ONLY
from .gains import Gain

Verdict = Literal["reproduced", "partly", "not reproduced"]

TOLERANCE = 1.0
"""Percentage points by which a gain may miss a range that is given in whole ones."""

NEAR = 0.15
"""Share by which the largest gain may miss what the paper has gains come up to."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A figure of the paper.

    Attributes:
        name: short, unique.
        text: what is claimed, for people.
        low, high: per cent; `low` is None where the paper says "up to".
        machine: whose simulations it is compared with; "" for all.
        over: what the gain is over: a column of `Gain`.
        groups: of workloads it speaks of.
    """

    name: str
    text: str
    low: float | None
    high: float
    machine: str
    over: str
    groups: tuple[str, ...]

    @property
    def range(self) -> tuple[float, float]:
        """Gains that agree with it, rounding included: for "up to" those near the largest."""
        if self.low is None:
            return self.high * (1 - NEAR), self.high * (1 + NEAR)
        return self.low - TOLERANCE, self.high + TOLERANCE


ALL = ("code", "conversation", "summarisation", "short", "medium", "long")
TRACES = ("code", "conversation")
LONG = ("long", "steady")

_RIVALS = {
    DEVICE_ONLY.name: ("GPU-only", "a GPU-only engine"),
    "pipelining": ("pipelining", "the best hybrid scheduler"),
}


def _on(
    machine: str,
    over: str,
    low: float | None,
    high: float,
    groups: tuple[str, ...],
    what: str,
    kind: str = "",
    source: str = "",
) -> Claim:
    """Return a claim about one machine: `kind` ends its name, `source` its text."""
    short, rival = _RIVALS[over]
    name, text = f"{machine} over {short}{kind}", f"{machine}, {what}, over {rival}{source}"
    return Claim(name=name, text=text, low=low, high=high, machine=machine, over=over, groups=groups)


CLAIMS = (
    _on("T4", DEVICE_ONLY.name, 84, 96, ALL, "all workloads"),
    _on("A10", DEVICE_ONLY.name, 11, 89, ALL, "all workloads"),
    _on("A10", DEVICE_ONLY.name, 11, 22, TRACES, "real traces", ", traces"),
    _on("T4", "pipelining", None, 49, LONG, "long outputs", ", long", " (second version of the paper)"),
    _on("T4", "pipelining", None, 72, ("summarisation",), "summarisation", ", summaries", " (fourth version)"),
    _on("A10", "pipelining", None, 37, LONG, "mean output over 500 tokens", ", long"),
    _on("A10", "pipelining", 17, 31, ("medium",), "mean output of 200 to 500 tokens", ", medium"),
    _on("A10", "pipelining", 5, 5, ("short",), "mean output of 50 to 200 tokens", ", short"),
    _on("A10", "pipelining", 6, 16, TRACES, "real traces", ", traces"),
    Claim(
        name="overlap over pipelining",
        text="asynchronous overlap alone over pipelining alone (ablation)",
        low=53,
        high=100,
        machine="",
        over="overlap",
        groups=("steady",),
    ),
    Claim(
        name="host kernel",
        text="the CPU kernel over the authors' own slower one (ablation)",
        low=13,
        high=21,
        machine="",
        over="slower_kernel",
        groups=ALL,
    ),
    Claim(
        name="cost model",
        text="the cost model over always overlapping, shorter outputs (ablation)",
        low=None,
        high=31,
        machine="",
        over="no_cost_model",
        groups=("code", "summarisation", "short"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A claim beside what was simulated, in per cent.

    Attributes:
        claim: what the paper says.
        gains: all that it speaks of.
        inside: those of them in the claim's range.
        nominal: (least, most) gain over workloads in the nominal set-up.
        at_papers_ratio: (least, most) over workloads at the paper's own ratios of host and device, None without any.
        band: (least, most) over workloads and all set-ups.
        verdict: of a range of gains, `reproduced` if every nominal gain lies in it; of an "up to" if the largest
            nominal gain is that, but for `NEAR` of it. Else `partly` if any gain of any set-up lies in the range,
            and `not reproduced` if none does.
    """

    claim: Claim
    gains: tuple[Gain, ...]
    inside: tuple[Gain, ...]
    nominal: tuple[float, float]
    at_papers_ratio: tuple[float, float] | None
    band: tuple[float, float]
    verdict: Verdict


def compare(claim: Claim, gains: Sequence[Gain]) -> Comparison:
    """Judge a claim by the gains that it speaks of.

    Raises:
        ValueError: there are none, or none in the nominal set-up.
    """
    nominal = [gain.percent for gain in gains if gain.is_nominal]
    if not nominal:
        raise ValueError(f"there are no gains in the nominal set-up to hold against {claim.name!r}")
    everything = [gain.percent for gain in gains]
    low, high = claim.range
    inside = tuple(gain for gain in gains if low <= gain.percent <= high)
    decisive = [max(nominal)] if claim.low is None else nominal
    agrees = all(low <= percent <= high for percent in decisive)
    papers = [gain.percent for gain in gains if gain.is_at_papers_ratio]
    return Comparison(
        claim=claim,
        gains=tuple(gains),
        inside=inside,
        nominal=(min(nominal), max(nominal)),
        at_papers_ratio=(min(papers), max(papers)) if papers else None,
        band=(min(everything), max(everything)),
        verdict="reproduced" if agrees else "partly" if inside else "not reproduced",
    )
