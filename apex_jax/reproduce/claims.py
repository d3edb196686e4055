"""What the paper reports (arXiv 2506.03296), and how a simulated band compares with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["reproduced", "partly", "not reproduced"]


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


ALL = ("code", "conversation", "summarisation", "short", "medium", "long")
TRACES = ("code", "conversation")

CLAIMS = (
    Claim(
        name="T4 over GPU-only",
        text="T4, all workloads, over a GPU-only engine",
        low=84,
        high=96,
        machine="T4",
        over="device_only",
        groups=ALL,
    ),
    Claim(
        name="A10 over GPU-only",
        text="A10, all workloads, over a GPU-only engine",
        low=11,
        high=89,
        machine="A10",
        over="device_only",
        groups=ALL,
    ),
    Claim(
        name="A10 over GPU-only, traces",
        text="A10, real traces, over a GPU-only engine",
        low=11,
        high=22,
        machine="A10",
        over="device_only",
        groups=TRACES,
    ),
    Claim(
        name="T4 over pipelining, long",
        text="T4, long outputs, over the best hybrid scheduler (second version of the paper)",
        low=None,
        high=49,
        machine="T4",
        over="pipelining",
        groups=("long", "steady"),
    ),
    Claim(
        name="T4 over pipelining, summaries",
        text="T4, summarisation, over the best hybrid scheduler (fourth version)",
        low=None,
        high=72,
        machine="T4",
        over="pipelining",
        groups=("summarisation",),
    ),
    Claim(
        name="A10 over pipelining, long",
        text="A10, mean output over 500 tokens, over the best hybrid scheduler",
        low=None,
        high=37,
        machine="A10",
        over="pipelining",
        groups=("long", "steady"),
    ),
    Claim(
        name="A10 over pipelining, medium",
        text="A10, mean output of 200 to 500 tokens, over the best hybrid scheduler",
        low=17,
        high=31,
        machine="A10",
        over="pipelining",
        groups=("medium",),
    ),
    Claim(
        name="A10 over pipelining, short",
        text="A10, mean output of 50 to 200 tokens, over the best hybrid scheduler",
        low=5,
        high=5,
        machine="A10",
        over="pipelining",
        groups=("short",),
    ),
    Claim(
        name="A10 over pipelining, traces",
        text="A10, real traces, over the best hybrid scheduler",
        low=6,
        high=16,
        machine="A10",
        over="pipelining",
        groups=TRACES,
    ),
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
        nominal: (least, most) gain over workloads in the nominal set-up.
        band: (least, most) over workloads and all set-ups.
        verdict: `reproduced` if every nominal gain lies in the paper's range (for "up to": the largest one reaches at
            least half of it and no more than it), `partly` if the band and the range overlap, else `not reproduced`.
    """

    claim: Claim
    nominal: tuple[float, float]
    band: tuple[float, float]
    verdict: Verdict


TOLERANCE = 1.0
"""Percentage points by which a gain may miss a range that is given in whole ones."""


def compare(claim: Claim, nominal: Sequence[float], everything: Sequence[float]) -> Comparison:
    """Judge a claim by gains in per cent: those of the nominal set-up, and those of all set-ups.

    Raises:
        ValueError: there are no gains.
    """
    if not nominal or not everything:
        raise ValueError(f"there are no gains to hold against {claim.name!r}")
    inner, outer = (min(nominal), max(nominal)), (min(everything), max(everything))
    if claim.low is None:
        # "Up to" is about the largest gain.
        within = claim.high / 2 <= inner[1] <= claim.high + TOLERANCE
        overlaps = outer[1] >= claim.high / 2
    else:
        low, high = claim.low - TOLERANCE, claim.high + TOLERANCE
        within = low <= inner[0] and inner[1] <= high
        overlaps = outer[0] <= high and outer[1] >= low
    verdict: Verdict = "reproduced" if within else "partly" if overlaps else "not reproduced"
    return Comparison(claim=claim, nominal=inner, band=outer, verdict=verdict)
