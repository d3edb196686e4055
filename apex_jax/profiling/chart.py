"""Draws a profile: a panel a part, seconds over what it depends on."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from ..scheduler import Curve, Profile
from ..scheduler.cost_model.curve import UNBOUNDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEYOND = 4096
"""How far a described curve is drawn that covers every count."""

_COLOUR = "#3f6fa8"


def draw_profile(profile: Profile) -> Figure:
    """Return the chart of a profile.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    panels = (
        ("linear, all layers", "rows of a pass", profile.layer, profile.num_layers),
        ("head and sampling", "rows that sample", profile.head, 1),
        ("device attention, all layers", "cached tokens", profile.device_attention.tokens, 1),
        ("prompt attention, all layers", "pairs of tokens", profile.prefill_attention, 1),
        ("moving a request", "tokens", profile.migration, 1),
        ("host attention, one layer: its rows", "rows of a cohort", profile.host_attention.rows, 1),
        ("host attention, one layer: their contexts", "cached tokens", profile.host_attention.tokens, 1),
        ("hop, one layer", "rows of a cohort", profile.hop, 1),
        ("boarding, one pass", "rows of a cohort", profile.boarding, 1),
    )
    figure = Figure(figsize=(18, 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, 5)
    for axis, (title, unit, curve, times) in zip(axes.flat, panels, strict=False):
        _draw(axis, curve, times)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(unit)
        axis.set_ylabel("ms")
    _draw_overheads(axes.flat[-1], profile)
    key = profile.key
    source = "described by rates" if profile.described else "measured"
    figure.suptitle(f"{key.model}, {key.dtypes}: {key.device}; host {key.host} ({source})", fontsize=11)
    return figure


def _draw(axis: Axes, curve: Curve, times: int) -> None:
    """Draw a curve over doublings of its count, as points are spread, and over factors of its time, so that neither few
    rows nor short times are squeezed; at 0 such axes have no place."""
    from matplotlib.ticker import LogLocator, NullFormatter

    known = {min(count, _BEYOND) if count == UNBOUNDED else count for count, _ in curve.points}
    counts = sorted(count for count in known if count > 0)
    if len(counts) == 1:
        # Of a line from 0 on, or a constant.
        counts = [min(1.0, counts[0] / 2), *counts]
    # Straight lines between points may be bent on these axes.
    between = [first * (last / first) ** (step / 32) for first, last in pairwise(counts) for step in range(32)]
    drawn = [*between, counts[-1]]
    axis.plot(drawn, [1e3 * times * curve(count) for count in drawn], color=_COLOUR)
    seconds = [1e3 * times * curve(count) for count in counts]
    axis.plot(counts, seconds, color=_COLOUR, marker="o", markersize=4, linestyle="none")
    axis.set_xscale("log", base=2)
    axis.set_xlim(counts[0] / 1.2, counts[-1] * 1.2)
    axis.set_xticks(_ticks(counts[0], counts[-1]), minor=False)
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(lambda count, _: _short(count))
    if (most := max(seconds)) > 0:
        axis.set_yscale("log")
        # A difference that noise has made negative is kept as a nanosecond: that is no place to begin an axis.
        least = max(min(second for second in seconds if second > 0), most * 1e-3)
        axis.set_ylim(least / 2, most * 2)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 50 * least else (1,)))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    else:
        axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)


def _ticks(first: float, last: float) -> list[float]:
    """Return powers of two within a range, seven at most."""
    powers = [2.0**exponent for exponent in range(math.ceil(math.log2(first)), math.floor(math.log2(last)) + 1)]
    return powers[:: -(-len(powers) // 7)] if powers else [first]


def _draw_overheads(axis: Axes, profile: Profile) -> None:
    """Draw what iterations take beside all that is counted."""
    names = ("every\niteration", "boundary\nby boundary")
    seconds = (1e3 * profile.iteration_overhead, 1e3 * (profile.iteration_overhead + profile.stepwise_overhead))
    bars = axis.bar(names, seconds, color=_COLOUR, width=0.5)
    axis.bar_label(bars, fmt="%.3f", fontsize=9, padding=2)
    axis.set_title("beside these, an iteration", fontsize=10)
    axis.set_ylabel("ms")
    axis.set_ylim(bottom=0, top=1.2 * max(seconds) or 1.0)
    axis.grid(alpha=0.3, axis="y")


def _short(count: float) -> str:
    """Return a count in few characters: 512, 16K, 4M."""
    for unit, size in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:.4g}"
