"""Draws a few iterations of a trace, one lane a track, so that a person sees what overlaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .recorder import TRACKS, Span, Track
from .timeline import Window
from .trace_file import nest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 15.0
"""Inches; the lanes take what the legends beside them leave."""
_LEFT, _RIGHT, _TOP_INCHES, _BOTTOM_INCHES = 0.065, 0.865, 0.8, 0.75
_LANE_INCHES: dict[Track, float] = {"device": 1.35, "host": 1.35, "transfers": 0.8, "waits": 0.8, "python": 0.7}
_EMPTY_INCHES = 0.4
_CHARACTER_INCHES, _SMALL_CHARACTER_INCHES = 0.075, 0.05
_STRIP = 0.2
"""Of a lane's height: the strip in a device bar that shows which cohort rides."""

_COLOURS: dict[Track, dict[str, str]] = {
    "device": {
        "layer": "#3f6fa8",
        "linear": "#6b93c4",
        "attention": "#9cc3e6",
        "prefill": "#7a5ba6",
        "head": "#1d3557",
    },
    "host": {"append": "#b8b8b8"},
    "transfers": {
        "to host": "#c2410c",
        "to device": "#15803d",
        "evict": "#7f1d1d",
        "fetch": "#0e7490",
        "land": "#155e75",
    },
    "waits": {"device waits": "#d62728", "host waits": "#7f7f7f", "python waits": "#c9a227"},
    "python": {"plan": "#8c7853", "dispatch": "#c4a96a", "read tokens": "#5f7161", "update": "#6d8b74"},
}
_OTHER_COLOURS = ("#b07aa1", "#76b7b2", "#ff9da7", "#9c755f", "#59a14f", "#edc948")
COHORT_COLOURS = ("#e8862e", "#4c9f70", "#c05299", "#8a6d3b", "#d4b106", "#5b8def", "#a63d40", "#6a9a1f")
_MEANINGS = {"layer": "layer: attention + linear", "linear": "linear alone"}
"""Entries of a legend that are not named like their kind."""
_MAX_ENTRIES: dict[Track, int] = {"device": 6, "host": 6, "transfers": 4, "waits": 4, "python": 4}
_UTILISED: tuple[Track, ...] = ("device", "host")
"""Tracks whose busy fraction is written beside them; their bars are labelled."""


class _Kind(NamedTuple):
    """An entry of a legend."""

    label: str
    colour: str


class _Bar(NamedTuple):
    span: Span
    kind: _Kind
    top: float
    bottom: float


def draw(window: Window) -> Figure:
    """Return the chart of a window.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    cohorts = _cohort_colours(window)
    lanes = [_Lane(track, window, cohorts) for track in TRACKS]
    heights = [lane.inches for lane in lanes]
    height = sum(heights) + _TOP_INCHES + _BOTTOM_INCHES
    figure = Figure(figsize=(WIDTH, height), dpi=130)
    axes = figure.subplots(len(TRACKS), 1, sharex=True, height_ratios=heights)
    figure.subplots_adjust(
        left=_LEFT, right=_RIGHT, top=1 - _TOP_INCHES / height, bottom=_BOTTOM_INCHES / height, hspace=0.08
    )
    axes[0].set_xlim(0, _milliseconds(window, window.end_ns))
    for ax, lane in zip(axes, lanes, strict=True):
        lane.draw(ax)
    axes[-1].set_xlabel("milliseconds")
    _label_iterations(axes[0], window)
    figure.text(_LEFT, 1 - 0.17 / height, window.summary(), fontsize=11, fontweight="bold", va="top")
    versions = ", ".join(f"{package} {number}" for package, number in window.trace.versions.items())
    figure.text(_LEFT, 0.1 / height, versions, fontsize=7, color="#666666")
    return figure


def _milliseconds(window: Window, nanoseconds: int) -> float:
    return (nanoseconds - window.begin_ns) / 1e6


def _inches(window: Window, nanoseconds: int) -> float:
    return nanoseconds / (window.end_ns - window.begin_ns) * WIDTH * (_RIGHT - _LEFT)


def _cohort(span: Span) -> int | None:
    cohort = span.args.get("cohort")
    return cohort if isinstance(cohort, int) else None


def _cohort_colours(window: Window) -> dict[int, str]:
    """Give cohorts that follow each other different colours."""
    found = sorted({cohort for span in window.spans if (cohort := _cohort(span)) is not None})
    return {cohort: COHORT_COLOURS[index % len(COHORT_COLOURS)] for index, cohort in enumerate(found)}


class _Lane:
    """One track's part of the chart; a row is one unit high, the first at the top."""

    def __init__(self, track: Track, window: Window, cohorts: dict[int, str]) -> None:
        self._track: Track = track
        self._window = window
        self._cohorts = cohorts
        self._colours = dict(_COLOURS[track])
        self._bars: list[_Bar] = []
        self._rows = 0
        spans = [span for span in window.spans if span.track == track]
        for group in self._groups(spans):
            self._place(group)

    @property
    def inches(self) -> float:
        """The lane's height."""
        if not self._rows:
            return _EMPTY_INCHES
        return _LANE_INCHES[self._track] * (1 + 0.25 * min(self._rows - 1, 6))

    def draw(self, ax: Axes) -> None:
        """Draw everything into the lane's axes."""
        self._frame(ax)
        # One collection for an entry of the legend, not one artist for a span: there are thousands.
        by_kind: dict[_Kind, list[_Bar]] = defaultdict(list)
        for bar in self._bars:
            by_kind[bar.kind].append(bar)
        for kind, bars in by_kind.items():
            self._collect(ax, kind.label, bars, **self._style(kind))
        for cohort, colour in self._cohorts.items():
            riding = [bar for bar in self._bars if self._track == "device" and _cohort(bar.span) == cohort]
            strips = [bar._replace(top=bar.bottom - _STRIP) for bar in riding]
            self._collect(ax, "strip", strips, facecolor=colour, linewidth=0, zorder=3)
        if self._track in _UTILISED:
            for bar in self._bars:
                self._label(ax, bar)
        self._legend(ax, self._in_order(by_kind))

    def _groups(self, spans: list[Span]) -> list[list[Span]]:
        """Divide spans into those that share rows: kinds of waits and of transfers are told apart by their height."""
        if self._track not in ("waits", "transfers"):
            return [spans] if spans else []
        by_kind: dict[_Kind, list[Span]] = defaultdict(list)
        for span in spans:
            by_kind[self._kind(span)].append(span)
        return [by_kind[kind] for kind in self._in_order(by_kind)]

    def _place(self, spans: list[Span]) -> None:
        first = self._rows
        for span, row, depth in nest(spans):
            # What lies within another is lower than it.
            top = first + row + 0.08 + min(0.2 * depth, 0.6)
            self._bars.append(_Bar(span, self._kind(span), top, first + row + 0.92))
            self._rows = max(self._rows, first + row + 1)

    def _kind(self, span: Span) -> _Kind:
        cohort = _cohort(span)
        if self._track == "host" and cohort is not None and span.name not in self._colours:
            return _Kind(f"cohort {cohort}", self._cohorts[cohort])
        if span.name not in self._colours:
            self._colours[span.name] = _OTHER_COLOURS[len(self._colours) % len(_OTHER_COLOURS)]
        return _Kind(span.name, self._colours[span.name])

    def _in_order(self, kinds: dict[_Kind, Any]) -> list[_Kind]:
        """Sort known kinds as they are listed above, and after them the others as they came."""
        known = list(self._colours)
        return sorted(kinds, key=lambda kind: known.index(kind.label) if kind.label in known else len(known))

    def _style(self, kind: _Kind) -> dict[str, Any]:
        if self._track == "waits":
            return {"facecolor": "none", "edgecolor": kind.colour, "linewidth": 0.6, "hatch": "//////"}
        # Transfers of microseconds would vanish between two pixels but for their edges.
        edge = kind.colour if self._track == "transfers" else "white"
        return {"facecolor": kind.colour, "edgecolor": edge, "linewidth": 0.5}

    def _frame(self, ax: Axes) -> None:
        ax.set_ylim(max(self._rows, 1), 0)
        ax.set_yticks([])
        ax.set_ylabel(self._track, rotation=0, ha="right", va="center", fontsize=11, labelpad=10)
        ax.set_facecolor("#f7f7f5")
        ax.tick_params(axis="x", bottom=self._track == TRACKS[-1], labelsize=9)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        ax.spines["bottom"].set_color("#bbbbbb")
        for border in self._borders():
            ax.axvline(_milliseconds(self._window, border), color="#222222", linewidth=1.1, zorder=4)

    def _borders(self) -> list[int]:
        return [*(iteration.begin_ns for iteration in self._window.iterations), self._window.end_ns]

    def _collect(self, ax: Axes, label: str, bars: Sequence[_Bar], **style: Any) -> None:
        from matplotlib.collections import PolyCollection

        corners = []
        for span, _, top, bottom in bars:
            left, right = (_milliseconds(self._window, moment) for moment in (span.begin_ns, span.end_ns))
            corners.append([(left, top), (right, top), (right, bottom), (left, bottom)])
        if corners:
            ax.add_collection(PolyCollection(corners, label=label, **style), autolim=False)

    def _label(self, ax: Axes, bar: _Bar) -> None:
        """Write into a bar which layer it is and how many rows, as far as there is room."""
        layer, rows = bar.span.args.get("layer"), bar.span.args.get("rows")
        if layer is None:
            return
        last = bar.span.args.get("last_layer", layer)
        number = str(layer) if last == layer else f"{layer}-{last}"
        name = f"layer {number}" if last == layer else f"layers {number}"
        begin = max(bar.span.begin_ns, self._window.begin_ns)
        # The border of an iteration would run through the text.
        end = min([bar.span.end_ns, *(border for border in self._borders() if border > begin)])
        room = _inches(self._window, end - begin)
        counted = [f"{name} · {rows} rows"] if rows is not None else []
        for text in (*counted, name, number):
            # Two digits at least, so that the numbers do not end with the ninth layer.
            width = _SMALL_CHARACTER_INCHES * max(2, len(text))
            if width + 0.05 < room:
                at = min(room / 2, width / 2 + 0.06) / _inches(self._window, 1_000_000)
                strip = _STRIP if self._track == "device" else 0.0
                ax.text(
                    _milliseconds(self._window, begin) + at, (bar.top + bar.bottom - strip) / 2, text,
                    fontsize=6.5, color=_ink(bar.kind.colour), ha="center", va="center", zorder=5,
                )  # fmt: skip
                return

    def _legend(self, ax: Axes, kinds: list[_Kind]) -> None:
        from matplotlib.patches import Patch

        top = 1.04
        if self._track in _UTILISED:
            ax.text(
                1.012, 1.0, f"busy {self._window.busy(self._track):.0%}",
                transform=ax.transAxes, fontsize=12, fontweight="bold", va="top",
            )  # fmt: skip
            top = 0.85
        entries = []
        for kind in kinds[: _MAX_ENTRIES[self._track]]:
            style = self._style(kind)
            style["edgecolor"] = kind.colour
            entries.append(Patch(label=_MEANINGS.get(kind.label, kind.label), **style))
        if len(kinds) > len(entries):
            entries.append(Patch(facecolor="none", label=f"and {len(kinds) - len(entries)} more"))
        if self._track == "device" and self._cohorts:
            strip = next(iter(self._cohorts.values()))
            entries.append(Patch(facecolor=strip, label="strip: cohort on board"))
        ax.legend(
            handles=entries, loc="upper left", bbox_to_anchor=(1.003, top), frameon=False, fontsize=8,
            handlelength=1.4, handleheight=1.0, labelspacing=0.25, borderaxespad=0.0,
        )  # fmt: skip


def _ink(colour: str) -> str:
    """Return what can be read on a colour, by the luminance of its sRGB values."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#222222" if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else "white"


def _label_iterations(ax: Axes, window: Window) -> None:
    for iteration in window.iterations:
        duration = iteration.end_ns - iteration.begin_ns
        milliseconds = f"{duration / 1e6:.1f} ms"
        strategy = iteration.strategy or "strategy unknown"
        forms = (
            f"iteration {iteration.number} · {strategy} · {milliseconds}",
            f"{iteration.number} · {milliseconds}\n{strategy}",
            milliseconds,
            str(iteration.number),
        )
        for text in forms:
            if max(map(len, text.split("\n"))) * _CHARACTER_INCHES < _inches(window, duration):
                middle = _milliseconds(window, (iteration.begin_ns + iteration.end_ns) // 2)
                ax.annotate(
                    text, (middle, 1.03), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9
                )
                break
