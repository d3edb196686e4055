"""Figures: everything that is drawn lies within the axes, and lines that coincide are both to be seen."""

from dataclasses import replace

import numpy as np
import pytest

from apex_jax.reproduce import figures
from apex_jax.reproduce.claims import CLAIMS, compare
from apex_jax.reproduce.gains import Gain
from apex_jax.reproduce.runs import STRATEGIES, SWEEP, SWEPT, Task
from apex_jax.reproduce.setups import NOMINAL, PAPERS_RATIOS, setups
from apex_jax.reproduce.steady import Steady
from apex_jax.scheduler.simulation.workload import equal
from apex_jax.scheduler.strategies import STRATEGIES as RATED

MACHINES = ("T4", "A10")


@pytest.fixture(scope="module")
def run():
    """(attributes of Run, results) -> a simulation that came out so."""
    jobs = tuple(equal(prompt=20, output=5, requests=2))
    made = Task(setup=setups()[0], workload="code", variant="apex", jobs=jobs).run()

    def call(*, result, **attributes):
        return replace(made, result=replace(made.result, **result), **attributes)

    return call


@pytest.fixture
def workload_runs(run):
    """(time per token in ms, tokens/s of apex) -> all strategies on all workloads, in two set-ups."""

    def call(tpot_ms, rate):
        return [
            run(
                machine=machine,
                setup=setup,
                workload=group,
                variant=name,
                result={"tpot_host_ms": tpot_ms, "tokens_per_s": rate if name == "apex" else 1.0},
            )
            for machine in MACHINES
            for setup in (NOMINAL, *PAPERS_RATIOS)
            for group in figures.GROUPS
            for name in STRATEGIES
        ]

    return call


def drawn(axis):
    """Return the corners of everything that an axis shows in its own units, one a row."""
    lines = [line.get_xydata() for line in axis.lines if line.get_transform() == axis.transData]
    return np.concatenate([points for points in lines if len(points)])


def assert_all_within(figure):
    for axis in figure.axes:
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        points = drawn(axis)
        assert left <= points[:, 0].min()
        assert points[:, 0].max() <= right
        assert low < points[:, 1].min()
        assert points[:, 1].max() < high


@pytest.mark.parametrize("ms", [0.3, 90.0, 70_000.0])
def test_times_per_token(workload_runs, ms):
    assert_all_within(figures.time_per_token(workload_runs(ms, 1.0)))


@pytest.mark.parametrize("ratio", [0.1, 1.0, 40.0])
@pytest.mark.parametrize("draw", [figures.throughput, figures.throughput_at_papers_ratio])
def test_throughput(workload_runs, ratio, draw):
    figure = draw(workload_runs(1.0, ratio))
    for axis in figure.axes:
        low, high = axis.get_ylim()
        assert (low, axis.get_yscale()) == (0, "linear")
        tops = [bar.get_height() for bar in axis.patches if bar.get_label() == "_nolegend_" and bar.get_width() < 1]
        assert max(1.0, ratio) == max(tops) < high
        assert low < min(1.0, ratio) == min(tops)


@pytest.mark.parametrize("ratio", [0.01, 1.0, 50.0])
def test_decoding_for_ever(ratio):
    rates = {name: 1.0 if name == "device_only" else ratio for name in RATED}
    decoding = [
        Steady(machine=machine, setup="any", device_kv_tokens=1000, host_gb_per_s=host, rates=rates)
        for machine in MACHINES
        for host in (5.0, 290.0)
    ]
    assert_all_within(figures.steady_decode(decoding))


def test_claims_are_drawn_on_one_scale():
    """Equal factors are equal lengths everywhere: from 0 to 100 % as from 100 to 300 and from 300 to 700 %."""
    gains = [
        Gain(machine="T4", setup=setup, workload="long", over="device_only", percent=percent)
        for setup, percent in ((NOMINAL, 0.0), (NOMINAL, 1208.0), ("slow", -20.0), ("fast", 1900.0))
    ]
    figure = figures.claims([compare(claim, gains) for claim in CLAIMS])
    assert_all_within(figure)
    (axis,) = figure.axes
    ends = [axis.transData.transform((1 + gain / 100, 0))[0] for gain in (0, 100, 300, 700)]
    assert np.diff(ends) == pytest.approx(ends[1] - ends[0])
    labels = {label.get_text(): tick for label, tick in zip(axis.get_xticklabels(), axis.get_xticks(), strict=True)}
    assert labels["0"] == 1
    assert labels["1,000"] == 11


def test_lines_that_coincide_are_both_seen(run):
    """Colours in the picture itself: beside grey text and axes both strategies' are left."""
    sweep = [
        run(
            machine=machine,
            setup=NOMINAL,
            workload=f"{SWEEP[machine][0]}+{output}",
            variant=name,
            result={"tokens_per_s": 1.0 if name == "device_only" else 1.0 + output / 100},
        )
        for machine in MACHINES
        for output in SWEEP[machine][1]
        for name in SWEPT
    ]
    figure = figures.gain_over_output(sweep)
    for axis in figure.axes:
        axis.get_legend().remove()
    assert_all_within(figure)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    red, _, blue, _ = np.moveaxis(np.asarray(canvas.buffer_rgba(), dtype=int), -1, 0)
    assert np.count_nonzero(red > blue + 60) > 1000
    assert np.count_nonzero(blue > red + 60) > 1000
