"""Figures of simulations, as PNG, SVG and PDF. Needs matplotlib (the `plot` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.whole_file import whole_file
from ..scheduler.strategies import ASYMMETRIC_PIPELINING, ASYNC_OVERLAP, DEVICE_ONLY
from .claims import Comparison
from .runs import STRATEGIES, SWEEP, Run
from .setups import NOMINAL, PAPERS_RATIOS
from .steady import CONTEXT, Steady

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {DEVICE_ONLY.name: "#8c8c8c", "pipelining": "#0072b2", "overlap": "#e69f00", "apex": "#d55e00"}
NAMES = {DEVICE_ONLY.name: "device only", "pipelining": "pipelining", "overlap": "async overlap", "apex": "APEX (auto)"}
GROUPS = ("code", "conversation", "summarisation", "short", "medium", "long")
PAPER = "#009e73"
AT_PAPERS_RATIO = "#0072b2"
PAPER_APEX = {"T4": (1.84, 1.96), "A10": (1.11, 1.89)}
"""Throughput of APEX over a GPU-only engine, all workloads."""

SHOWN: tuple[tuple[str, str], ...] = ((ASYNC_OVERLAP.name, "overlap"), (ASYMMETRIC_PIPELINING.name, "pipelining"))
GAIN_TICKS = (-50, -20, 0, 25, 50, 100, 200, 500, 1000, 2000, 5000)
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "apex_jax",
    "pdf.fonttype": 42,
}


def draw_all(
    folder: Path,
    runs: Sequence[Run],
    sweep: Sequence[Run],
    decoding: Sequence[Steady],
    found: Sequence[Comparison],
) -> list[Path]:
    """Draw every figure into a folder; return the files."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figures = {
            "throughput": throughput(runs),
            "throughput_at_papers_ratio": throughput_at_papers_ratio(runs),
            "gain_over_output": gain_over_output(sweep),
            "steady_decode": steady_decode(decoding),
            "time_per_token": time_per_token(runs),
            "claims": claims(found),
        }
        return [file for name, figure in figures.items() for file in _save(folder / name, figure)]


def _save(stem: Path, figure: Figure) -> list[Path]:
    undated = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    files = {stem.with_suffix(f".{kind}"): metadata for kind, metadata in undated.items()}
    for file, metadata in files.items():
        with whole_file(file, binary=True) as opened:
            figure.savefig(opened, format=file.suffix[1:], dpi=200, metadata=metadata)
    return list(files)


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    # Not through pyplot, which keeps figures and asks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, column + 1) for column in range(columns)]


def _rates(runs: Sequence[Run], machine: str, workload: str) -> dict[str, dict[str, float]]:
    """Return tokens/s by set-up and variant."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        if (run.machine, run.workload) == (machine, workload):
            found.setdefault(run.setup, {})[run.variant] = run.result.tokens_per_s
    return found


def throughput(runs: Sequence[Run]) -> Figure:
    figure = _throughput(runs, NOMINAL, {run.setup for run in runs})
    figure.suptitle("Simulated; bars: nominal host and device KV, whiskers: all set-ups", fontsize=9, color="#555555")
    return figure


def throughput_at_papers_ratio(runs: Sequence[Run]) -> Figure:
    example, typical = PAPERS_RATIOS
    figure = _throughput(runs, example, {example, typical})
    figure.suptitle(
        "Simulated; bars: host attention at 5.6 % of the device's, as 170 us beside 3,031; whiskers: at 10 %",
        fontsize=9,
        color="#555555",
    )
    return figure


def _throughput(runs: Sequence[Run], shown: str, setups: set[str]) -> Figure:
    """Draw bars of one set-up, and whiskers over several."""
    figure, axes = _figure(9.5, 3.8, 2)
    for axis, (machine, title) in zip(axes, _titles(), strict=True):
        width = 0.8 / len(STRATEGIES)
        for index, name in enumerate(STRATEGIES):
            places, heights, low, high = [], [], [], []
            for place, group in enumerate(GROUPS):
                ratios = {
                    setup: found[name] / found[DEVICE_ONLY.name]
                    for setup, found in _rates(runs, machine, group).items()
                    if setup in setups
                }
                if shown not in ratios:
                    continue
                places.append(place + (index - 1.5) * width)
                heights.append(ratios[shown])
                low.append(ratios[shown] - min(ratios.values()))
                high.append(max(ratios.values()) - ratios[shown])
            axis.bar(places, heights, width, color=COLOURS[name], label=NAMES[name])
            if name != DEVICE_ONLY.name:
                axis.errorbar(places, heights, [low, high], fmt="none", ecolor="#333333", elinewidth=0.9, capsize=2)
        axis.axhspan(*PAPER_APEX[machine], color=PAPER, alpha=0.25, lw=0, label="paper, APEX", zorder=0)
        axis.axhline(1, color="#333333", lw=0.8)
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        axis.set_xticks(range(len(GROUPS)), GROUPS, rotation=20)
        axis.set_title(title)
    axes[0].set_ylabel("throughput over device only")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def gain_over_output(sweep: Sequence[Run]) -> Figure:
    figure, axes = _figure(9.5, 4.8, 2)
    for axis, (machine, title) in zip(axes, _titles(), strict=True):
        prompt, outputs = SWEEP[machine]
        labels = {run.setup: run.host_gb_per_s for run in sweep if run.machine == machine}
        for shade, setup in enumerate(sorted(labels, key=lambda name: labels[name])):
            rates = [_rates(sweep, machine, f"{prompt}+{output}")[setup] for output in outputs]
            tone = 0.35 + 0.65 * (shade + 1) / len(labels)
            marker = "os^DvP"[shade]
            # They coincide where auto takes pipelining: a narrow dashed line upon a wide one shows both.
            for name, style in (
                ("apex", {"ls": "-", "lw": 3.4, "ms": 7.0, "alpha": 0.75 * tone}),
                ("pipelining", {"ls": (0, (3, 2)), "lw": 1.3, "ms": 3.5, "alpha": tone}),
            ):
                gains = [100 * (found[name] / found[DEVICE_ONLY.name] - 1) for found in rates]
                label = f"{NAMES[name]}, host {labels[setup]:.3g} GB/s"
                axis.plot(outputs, gains, marker=marker, color=COLOURS[name], mew=0, label=label, **style)
        axis.axhline(0, color="#333333", lw=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(outputs, [str(output) for output in outputs])
        axis.minorticks_off()
        axis.set_xlabel("output tokens")
        axis.set_title(f"{title}, {prompt} prompt tokens")
        handles, names = axis.get_legend_handles_labels()
        # One column a strategy.
        order = [*range(0, len(names), 2), *range(1, len(names), 2)]
        axis.legend([handles[at] for at in order], [names[at] for at in order], fontsize=7, ncols=2)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.3 * (high - low))
    axes[0].set_ylabel("gain over device only, %")
    figure.suptitle("Simulated; equal requests, all at once", fontsize=9, color="#555555")
    return figure


def steady_decode(decoding: Sequence[Steady]) -> Figure:
    figure, axes = _figure(9.5, 3.8, 2)
    for axis, (machine, title) in zip(axes, _titles(), strict=True):
        own = [each for each in decoding if each.machine == machine]
        for held, dashes in zip(sorted({each.device_kv_tokens for each in own}), ("-", "--", ":"), strict=False):
            some = [each for each in own if each.device_kv_tokens == held]
            hosts = [each.host_gb_per_s for each in some]
            for strategy, name in SHOWN:
                ratios = [each.rates[strategy] / each.rates[DEVICE_ONLY.name] for each in some]
                label = f"{NAMES[name]}, device KV {held:,} tokens"
                axis.plot(hosts, ratios, dashes, color=COLOURS[name], lw=1.5, label=label)
        axis.axhspan(*PAPER_APEX[machine], color=PAPER, alpha=0.25, lw=0, label="paper, APEX", zorder=0)
        axis.axhline(1, color="#333333", lw=0.8)
        axis.set_xscale("log")
        axis.set_xticks([5, 10, 20, 45, 90, 190], ["5", "10", "20", "45", "90", "190"])
        axis.minorticks_off()
        _logarithmic(axis, base=2, ticks=(1.0, 1.5))
        axis.set_xlabel("host attention, GB/s")
        axis.set_title(title)
        axis.legend(fontsize=7.5)
    axes[0].set_ylabel("throughput over device only")
    figure.suptitle(f"Closed forms; decoding for ever, contexts of {CONTEXT} tokens", fontsize=9, color="#555555")
    return figure


def time_per_token(runs: Sequence[Run]) -> Figure:
    figure, axes = _figure(9.5, 3.8, 2)
    for axis, (machine, title) in zip(axes, _titles(), strict=True):
        for index, name in enumerate(STRATEGIES):
            for side, marker in (("device", "o"), ("host", "D")):
                points = [
                    (GROUPS.index(run.workload) + (index - 1.5) * 0.18, value)
                    for run in runs
                    if (run.machine, run.setup, run.variant) == (machine, NOMINAL, name)
                    and (value := getattr(run.result, f"tpot_{side}_ms")) is not None
                ]
                filled = COLOURS[name] if side == "device" else "none"
                axis.plot(*zip(*points, strict=True), marker, color=COLOURS[name], mfc=filled, ms=5) if points else None
        _logarithmic(axis, base=10, ticks=(1.0, 2.0, 5.0))
        axis.set_xticks(range(len(GROUPS)), GROUPS, rotation=20)
        axis.set_title(title)
    for name in STRATEGIES:
        axes[0].plot([], [], "o", color=COLOURS[name], label=NAMES[name])
    axes[0].plot([], [], "D", color="#333333", mfc="none", label="host requests")
    axes[0].set_ylabel("mean time per token, ms")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle("Simulated; nominal set-up; filled: device requests", fontsize=9, color="#555555")
    return figure


def claims(found: Sequence[Comparison]) -> Figure:
    figure, (axis,) = _figure(9.5, 0.48 * len(found) + 1.3, 1)
    marks = {"reproduced": "yes", "partly": "partly", "not reproduced": "no"}
    for row, comparison in enumerate(reversed(found)):
        claim = comparison.claim
        low, high = _ratio(claim.low or 0.0), _ratio(claim.high)
        axis.barh(row + 0.24, high - low, 0.3, low, color=PAPER, alpha=0.7)
        if low == high:
            axis.plot([high], [row + 0.24], "|", color=PAPER, ms=9, mew=2.5)
        axis.plot([_ratio(gain) for gain in comparison.band], [row] * 2, color=COLOURS["apex"], lw=1.2)
        shown = (comparison.nominal, row, COLOURS["apex"]), (comparison.at_papers_ratio, row - 0.24, AT_PAPERS_RATIO)
        for gains, height, colour in shown:
            if gains is not None:
                ends = [_ratio(gain) for gain in gains]
                axis.plot(ends, [height] * 2, color=colour, lw=5, solid_capstyle="butt")
                axis.plot(ends[:1], [height], "|", color=colour, ms=6, mew=1.5)
        verdict = f"{marks[comparison.verdict]}, {len(comparison.inside)}/{len(comparison.gains)}"
        axis.annotate(verdict, (1.01, row), xycoords=("axes fraction", "data"), va="center")
    axis.set_xscale("log")
    left, right = axis.get_xlim()
    ticks = [tick for tick in GAIN_TICKS if left <= _ratio(tick) <= right]
    axis.set_xticks([_ratio(tick) for tick in ticks], [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_yticks(range(len(found)), [comparison.claim.name for comparison in reversed(found)])
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", visible=True)
    axis.axvline(1, color="#333333", lw=0.8)
    axis.set_xlabel(
        "gain, %; the scale is logarithmic in the throughputs' ratio\n"
        "right: whether it is reproduced, and how many of the simulated gains lie in the paper's range"
    )
    axis.plot([], [], color=PAPER, lw=6, alpha=0.7, label="paper (from 0 where it says up to)")
    axis.plot([], [], color=COLOURS["apex"], lw=6, label="simulated, nominal set-up")
    axis.plot([], [], color=COLOURS["apex"], lw=1.2, label="simulated, all set-ups")
    axis.plot([], [], color=AT_PAPERS_RATIO, lw=6, label="simulated, the paper's own ratios")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return figure


def _titles() -> tuple[tuple[str, str], ...]:
    return (("T4", "T4, Llama-2-7B"), ("A10", "A10, Llama-3.1-8B"))


def _ratio(percent: float) -> float:
    """Return the throughputs' ratio that a gain is."""
    return 1 + percent / 100


def _logarithmic(axis: Axes, *, base: int, ticks: tuple[float, ...]) -> None:
    """Give what has been drawn a logarithmic scale around it, with ticks at these multiples of the base's powers."""
    from matplotlib.ticker import LogLocator

    axis.set_yscale("log", base=base)
    axis.yaxis.set_major_locator(LogLocator(base=base, subs=ticks, numticks=20))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.minorticks_off()
