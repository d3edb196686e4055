"""Draws what a model takes of a GPU's memory, and the bytes of its decode steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .fit_report import FitReport, decode_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "weights": "#3f6fa8",
    "KV cache": "#e0a030",
    "largest program": "#b04a4a",
    "left": "#b9cf9f",
    "not JAX's": "#d5d5d5",
}


def draw_fit(report: FitReport) -> Figure:
    """Return the picture of a report that fits or could at least be planned.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: nothing could be planned.
    """
    from matplotlib.figure import Figure

    if not report.planned:
        raise ValueError(f"there is nothing to draw: {report.refused}")
    figure = Figure(figsize=(12, 5.2), dpi=110, layout="constrained")
    memory, steps = figure.subplots(1, 2, width_ratios=(1, 1.5))
    _draw_memory(memory, report)
    _draw_steps(steps, report)
    figure.suptitle(
        f"{report.model}, {report.planned['dtype']}, on {report.device.name}: "
        f"{report.planned['device_kv_tokens']:,} tokens of KV (compiled, not run)",
        fontsize=11,
    )
    return figure


def _draw_memory(axis: Axes, report: FitReport) -> None:
    parts = {
        "weights": report.planned["weight_bytes"],
        "KV cache": report.kv_bytes,
        "largest program": report.program_bytes,
        "left": max(0, report.left),
        "not JAX's": report.device.memory - report.limit,
    }
    bottom = 0.0
    for name, size in parts.items():
        height = size / 1e9
        axis.bar([0], [height], bottom=[bottom], width=0.5, color=_COLOURS[name])
        axis.annotate(f"{name}, {height:.2f} GB", (0.28, bottom + height / 2), va="center", fontsize=9)
        bottom += height
    axis.set_xlim(-0.35, 1.1)
    axis.set_ylim(0, 1.05 * max(bottom, report.device.memory / 1e9))
    axis.axhline(report.device.memory / 1e9, color="black", linewidth=0.8, linestyle="--")
    axis.set_xticks([])
    axis.set_ylabel("GB of device memory")


def _draw_steps(axis: Axes, report: FitReport) -> None:
    steps = decode_steps(report)
    for index, program in enumerate(steps):
        needed, read = program["fewest_bytes_read"] / 1e9, program["bytes_read"] / 1e9
        written = program["bytes_written"] / 1e9
        axis.bar([index], [needed], width=0.6, color="#3f6fa8", label=None if index else "fewest: weights and KV once")
        axis.bar(
            [index],
            [max(0.0, read - needed)],
            bottom=[needed],
            width=0.6,
            color="#b04a4a",
            label=None if index else "read beyond that",
        )
        axis.bar(
            [index],
            [written],
            bottom=[max(read, needed)],
            width=0.6,
            color="#e0a030",
            label=None if index else "written",
        )
        total = (program["bytes_read"] + program["bytes_written"]) / report.device.bandwidth
        axis.annotate(
            f"{1e3 * total:.1f} ms", (index, max(read, needed) + written), ha="center", va="bottom", fontsize=9
        )
    axis.set_xticks(range(len(steps)), [program["shape"].split()[0] for program in steps])
    axis.set_xlabel(f"rows of a decode step, {steps[0]['shape'].split(', ')[1]} tokens each" if steps else "")
    axis.set_ylabel("GB moved in device memory")
    axis.margins(y=0.12)
    if steps:
        axis.legend(loc="upper left", frameon=False)
