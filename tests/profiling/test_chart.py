"""Charts of profiles show every part, few rows as well as many."""

from dataclasses import replace

import pytest

from apex_jax.profiling.chart import draw_profile
from apex_jax.scheduler import Curve

from .test_profiling import known


def panels(profile):
    return {axis.get_title(): axis for axis in draw_profile(profile).axes}


def points(axis):
    """What is marked as measured."""
    return list(zip(*axis.lines[1].get_data(), strict=True))


def test_every_part_of_a_profile_has_a_panel():
    profile = replace(known(), boarding=Curve(points=((4, 1e-3), (16, 2e-3))), iteration_overhead=5e-4)
    shown = panels(profile)
    assert len(shown) == 10
    assert points(shown["boarding, one pass"]) == [(4, 1.0), (16, 2.0)]
    assert points(shown["linear, all layers"])[:2] == [(1, pytest.approx(6.0)), (8, pytest.approx(7.2))]
    bars = [bar.get_height() for bar in shown["beside these, an iteration"].patches]
    assert bars == pytest.approx([0.5, 1.5])


def test_few_rows_have_as_much_place_as_many():
    """From 1 to 8 rows is as far as from 8 to 64."""
    axis = panels(known())["linear, all layers"]
    first, middle, last = (axis.transData.transform((rows, 10))[0] for rows in (1, 8, 64))
    assert middle - first == pytest.approx(last - middle)


def test_a_part_that_takes_no_time():
    shown = panels(replace(known(), boarding=Curve.constant(0.0), hop=Curve(points=((4, 0.0),))))
    assert {seconds for _, seconds in points(shown["boarding, one pass"])} == {0.0}
    assert {seconds for _, seconds in points(shown["hop, one layer"])} == {0.0}
