"""Draws a plan: boundaries from left to right, a lane for the device rows and one for each cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..scheduler.plan import Plan
from .plan_layout import (
    MARGIN,
    PASSES_SHARE,
    HostJob,
    Pass,
    counted,
    device_rows,
    host_jobs,
    moves,
    num_rows,
    passes,
    right_edge,
)
from .timeline_chart import COHORT_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 15.0
_LEFT, _RIGHT, _TOP_INCHES, _BOTTOM_INCHES = 0.115, 0.99, 0.5, 1.0
_DEVICE_INCHES, _COHORT_INCHES, _LEAST_INCHES = 0.95, 0.75, 0.32
_FEW_COHORTS = 8
_LINEAR, _ATTENTION, _WAIT = "#3f6fa8", "#9cc3e6", "#d62728"
_MOST_TICKS = 40


def draw_plan(plan: Plan) -> Figure:
    """Return the chart of a plan.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    lane = _COHORT_INCHES if len(plan.cohorts) <= _FEW_COHORTS else _LEAST_INCHES
    notes = moves(plan)
    top = _TOP_INCHES + 0.2 * len(notes)
    height = top + _DEVICE_INCHES + lane * len(plan.cohorts) + _BOTTOM_INCHES
    figure = Figure(figsize=(WIDTH, height), dpi=130)
    ax = figure.add_axes((_LEFT, _BOTTOM_INCHES / height, _RIGHT - _LEFT, 1 - (top + _BOTTOM_INCHES) / height))
    _Chart(ax, plan, lane / _DEVICE_INCHES).draw()
    title = f"plan {plan.number} · {plan.strategy} · {plan.num_layers} layers · {len(plan.stages)} passes over weights"
    figure.text(_LEFT, 1 - 0.17 / height, title, fontsize=11, fontweight="bold", va="top")
    figure.text(_LEFT, 1 - 0.45 / height, "\n".join(notes), fontsize=9, va="top")
    return figure


class _Chart:
    """The lanes; the device's is one unit high, those of cohorts `lane`."""

    def __init__(self, ax: Axes, plan: Plan, lane: float) -> None:
        self._ax = ax
        self._plan = plan
        self._lane = lane
        self._places = {cohort.id: index for index, cohort in enumerate(plan.cohorts)}
        self._height_inches = _DEVICE_INCHES * (1 + lane * len(plan.cohorts))
        self._inches_per_unit = WIDTH * (_RIGHT - _LEFT) / (MARGIN + right_edge(plan.num_layers))

    def draw(self) -> None:
        self._frame()
        for one in passes(self._plan):
            self._pass(one)
        for job in host_jobs(self._plan):
            self._job(job)
        for cohort in self._plan.cohorts:
            self._ends(cohort.id)
        self._legend()

    def _frame(self) -> None:
        ax, last = self._ax, self._plan.num_layers
        ax.set_xlim(-MARGIN, right_edge(last))
        ax.set_ylim(1 + self._lane * len(self._places), 0)
        step = -(-(last + 1) // _MOST_TICKS)
        ax.set_xticks([boundary + PASSES_SHARE / 2 for boundary in range(0, last + 1, step)])
        ax.set_xticklabels([str(boundary) for boundary in range(0, last + 1, step)], fontsize=9)
        ax.set_xlabel("boundary b: output projection and MLP of layer b - 1, then queries, keys and values of layer b")
        labels = [device_rows(self._plan).replace(": ", "\n").replace(" and ", "\nand ").partition(" ride")[0]]
        labels += [f"cohort {cohort.id}\n{counted(num_rows(cohort), 'row')}" for cohort in self._plan.cohorts]
        if self._lane < 0.5:
            labels = [labels[0], *(label.replace("\n", " · ") for label in labels[1:])]
        extents = [self._extent(None), *(self._extent(cohort.id) for cohort in self._plan.cohorts)]
        ax.set_yticks([(top + bottom) / 2 for top, bottom in extents])
        ax.set_yticklabels(labels, fontsize=9)
        ax.tick_params(length=0)
        ax.set_facecolor("#f7f7f5")
        for side in ("top", "right", "left", "bottom"):
            ax.spines[side].set_visible(False)
        for _, bottom in extents[:-1]:
            ax.axhline(bottom + 0.06, color="white", linewidth=3, zorder=0)

    def _extent(self, cohort: int | None) -> tuple[float, float]:
        """Return top and bottom of a lane's boxes."""
        if cohort is None:
            return 0.06, 0.94
        top = 1 + self._lane * self._places[cohort]
        return top + 0.06, top + self._lane - 0.06

    def _box(self, left: float, right: float, extent: tuple[float, float], gid: str, **style: Any) -> None:
        from matplotlib.patches import Rectangle

        top, bottom = extent
        self._ax.add_patch(Rectangle((left, top), right - left, bottom - top, gid=gid, **style))

    def _pass(self, one: Pass) -> None:
        lanes = [self._extent(None)] if one.device else []
        if one.device:
            self._box(one.begin, one.end, lanes[0], "pass", facecolor=_LINEAR, edgecolor="white", linewidth=0.5)
            if one.boundary < self._plan.num_layers:
                # Behind all passes of the boundary: they may not leave the middle of the unit to attention.
                attention = (lanes[0][0] + 0.2, lanes[0][1] - 0.2)
                left, right = one.boundary + PASSES_SHARE, one.boundary + 1
                self._box(left, right, attention, "attention", facecolor=_ATTENTION, linewidth=0)
        if one.cohort is not None:
            extent = self._extent(one.cohort.id)
            if one.device:
                between = (lanes[0][1], extent[0])
                self._box(one.begin, one.end, between, "shared", facecolor="#d5dbe3", linewidth=0, zorder=0.5)
            edge = "white" if one.device else "#111111"
            colour = self._colour(one.cohort.id)
            self._box(one.begin, one.end, extent, "pass", facecolor=colour, edgecolor=edge, linewidth=0.9)
            lanes.append(extent)
        if one.waits:
            for top, bottom in lanes:
                self._ax.plot([one.begin] * 2, [top, bottom], color=_WAIT, linewidth=2.2, zorder=4, gid="wait")

    def _colour(self, cohort: int) -> str:
        return COHORT_COLOURS[self._places[cohort] % len(COHORT_COLOURS)]

    def _job(self, job: HostJob) -> None:
        top, bottom = self._extent(job.cohort.id)
        inset = (bottom - top) * 0.22
        colour = self._colour(job.cohort.id)
        self._box(
            job.begin, job.end, (top + inset, bottom - inset), "host",
            facecolor="white", edgecolor=colour, hatch="////", linewidth=0.6, zorder=1,
        )  # fmt: skip
        where = {"within": "", "before": ", since the last iteration", "after": ", until the next iteration"}
        for text in (f"layer {job.layer} on the host{where[job.reach]}", f"layer {job.layer}"):
            if len(text) * 0.068 + 0.2 < (job.end - job.begin) * self._inches_per_unit:
                self._ax.text(
                    (job.begin + job.end) / 2, (top + bottom) / 2, text, fontsize=8, ha="center", va="center", zorder=5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                )  # fmt: skip
                break

    def _ends(self, cohort_id: int) -> None:
        """Mark where a cohort boards and where it leaves the batch."""
        own = [one for one in passes(self._plan) if one.cohort is not None and one.cohort.id == cohort_id]
        parked = own[-1].boundary < self._plan.num_layers
        top, bottom = self._extent(cohort_id)
        middle = (top + bottom) / 2
        width = own[0].end - own[0].begin
        size = min(6.0, 72 * 0.35 * width * self._inches_per_unit)
        style: dict[str, Any] = {"color": "white", "markersize": size, "markeredgewidth": size / 6}
        style |= {"markeredgecolor": "#111111", "linestyle": "none"}
        if own[0] is not own[-1]:
            places = (own[0].begin + width / 2, own[-1].begin + width / 2)
        else:
            places = (own[0].begin + width * 0.28, own[0].begin + width * 0.72)
        self._ax.plot(places[0], middle, marker="^", zorder=6, gid="boards", **style)
        self._ax.plot(places[1], middle, marker="s" if parked else "*", zorder=6, gid="leaves", **style)

    def _legend(self) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        mark: dict[str, Any] = {"color": "white", "markeredgecolor": "#111111", "linestyle": "none", "markersize": 7}
        plan, found, hosted = self._plan, passes(self._plan), bool(self._plan.cohorts)
        colour = self._colour(plan.cohorts[0].id) if hosted else "none"
        entries: list[tuple[bool, Any]] = [
            (plan.has_device_rows, Patch(facecolor=_LINEAR, label="pass over a boundary's weights")),
            (plan.has_device_rows, Patch(facecolor=_ATTENTION, label="attention on the device")),
            (
                any(one.cohort is not None and one.device for one in found),
                Patch(facecolor=colour, label="cohort in the device rows' pass"),
            ),
            (
                not all(one.device for one in found),
                Patch(facecolor=colour, edgecolor="#111111", label="cohort in a pass of its own"),
            ),
            (hosted, Patch(facecolor="white", edgecolor=colour, hatch="////", label="attention on the host")),
            (hosted, Line2D([], [], color=_WAIT, linewidth=2.2, label="device waits for the host, if it is late")),
            (hosted, Line2D([], [], marker="^", label="boards", **mark)),
            (
                any(cohort.last < plan.num_layers for cohort in plan.cohorts),
                Line2D([], [], marker="s", label="is parked", **mark),
            ),
            (bool(plan.arriving), Line2D([], [], marker="*", label="gets its token", **mark)),
        ]
        below = (0, -0.5 / self._height_inches)
        self._ax.legend(
            handles=[handle for present, handle in entries if present], loc="upper left", bbox_to_anchor=below, ncols=5,
            frameon=False, fontsize=8.5, borderaxespad=0.0, columnspacing=1.6,
        )  # fmt: skip
