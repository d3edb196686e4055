"""Draws a profile: a panel a part, seconds over what it depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .scheduler import Curve, Profile
from .scheduler.curve import UNBOUNDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEYOND = 4096
"""How far a described curve is drawn that covers every count."""


def draw_profile(profile: Profile) -> Figure:
    """Return the chart of a profile.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    panels = (
        ("linear, all layers", "rows of a pass", profile.layer, profile.num_layers),
        ("head and sampling", "rows", profile.head, 1),
        ("device attention, all layers", "cached tokens", profile.device_attention.tokens, 1),
        ("prompt attention, all layers", "pairs of tokens", profile.prefill_attention, 1),
        ("host attention, one layer: its rows", "rows of a cohort", profile.host_attention.rows, 1),
        ("host attention, one layer: their contexts", "cached tokens", profile.host_attention.tokens, 1),
        ("hop", "rows of a cohort", profile.hop, 1),
        ("moving a request", "tokens", profile.migration, 1),
    )
    figure = Figure(figsize=(15, 7), dpi=120, layout="constrained")
    axes = figure.subplots(2, 4)
    for axis, (title, unit, curve, times) in zip(axes.flat, panels, strict=True):
        _draw(axis, curve, times)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(unit)
        axis.set_ylabel("ms")
    key = profile.key
    source = "described by rates" if profile.described else "measured"
    figure.suptitle(f"{key.model}, {key.dtypes}: {key.device}; host {key.host} ({source})", fontsize=11)
    return figure


def _draw(axis: Axes, curve: Curve, times: int) -> None:
    counts = sorted({min(count, _BEYOND) if count == UNBOUNDED else count for count, _ in curve.points})
    seconds = [1e3 * times * curve(count) for count in counts]
    axis.plot(counts, seconds, color="#3f6fa8", marker="o", markersize=4)
    axis.set_ylim(bottom=0, top=1.1 * max(seconds) or 1.0)
    axis.grid(alpha=0.3)
