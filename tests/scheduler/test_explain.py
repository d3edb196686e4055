"""What the explanation says, held against the numbers it was made from."""

import json
import re
from dataclasses import replace

import pytest

from apex_jax.scheduler import AttentionTime, CostModel, Curve, Measured, Roster, Situation
from apex_jax.scheduler.planner.explain import explain
from apex_jax.scheduler.planner.explain_values import explain_values
from apex_jax.scheduler.planner.options import PlannerOptions
from apex_jax.scheduler.planner.planner import Planner

from .machines import capacity, machine

DEVICE = {"num_layers": 4, "device_rows": 10, "device_kv_tokens": 100, "remaining_tokens": 10**10}


def planner(*, max_time_per_token=None, curves=(), **times):
    values = {"layers": 4, "device_token": 0.02, "host_token": 0.005, **times}
    options, sizes = PlannerOptions(max_time_per_token=max_time_per_token), capacity(1, 1, rows=64, host_rows=512)
    return Planner(CostModel(replace(machine(**values), **dict(curves))), sizes, options)


def situation(**changes):
    rows = changes.get("host_rows", 0)
    return Situation(**{**DEVICE, "host_kv_tokens": 10 * rows, "free_host_tokens": 10**5, **changes})


def line(text, begin):
    return next(line for line in text.splitlines() if line.strip().startswith(begin))


def test_before_the_first_decision():
    assert explain(planner()) == "No decision has been made yet."


def test_each_strategy_with_its_times_and_rate():
    """10 host rows: 6 s on the device alone, as long with layer_sync, 10 s pipelined."""
    got = planner()
    got.decide(situation(host_rows=10, free_host_tokens=0))
    text = explain(got)
    assert line(text, "device_only").split()[1:] == ["-", "6,000", "6,000", "-", "-", "1.7", "1.7", "6,000", "none"]
    assert line(text, "layer_sync").split()[-8:] == ["6,000", "6,000", "2,000", "-", "3.3", "3.3", "6,000", "6,000"]
    assert line(text, "asymmetric_pipelining").split()[1:5] == ["2", "x", "5", "10,000"]
    assert line(text, "async_overlap").split()[-1] == "30,000"
    assert line(text, "chosen").startswith("chosen      layer_sync: predicted best, 2.00 times device_only's rate")
    assert line(text, "machine") == "machine     card, host cores; described by rates"


def test_tokens_a_second_are_output_tokens():
    """A prompt of 3 s lengthens 6 s to 9 s: 10 tokens in 9 s, which are worth the 15 that the device makes in them."""
    got = planner(pair=3.0)
    got.decide(situation(host_rows=10, prefill_tokens=1))
    text = explain(got)
    assert line(text, "device_only").split()[-4:-2] == ["1.1", "1.7"]
    assert line(text, "prompts") == "prompts     1 tokens in 100% of the iterations"
    assert "compared: time for prompts counts" in text


def test_iterations_are_means_where_some_have_prompts():
    """Every second iteration has a prompt of 3 s: 7.5 s in the mean, in which the device is always busy."""
    got = planner(pair=3.0)
    for turn in range(2000):
        got.decide(situation(prefill_tokens=turn % 2))
    row = line(explain(got), "device_only").split()
    assert [float(row[index].replace(",", "")) for index in (2, 3)] == pytest.approx([7500, 7500], rel=0.01)
    assert row[5:7] == ["-", "1.3"]


def test_cohorts_are_those_under_way():
    """150 rows fill 6 s of the host: 30 in each of the five that are under way. 28 rows are two cohorts of 14, 15 one
    of 8 and one of 7."""
    got = planner()
    got.decide(situation(host_rows=200, free_host_tokens=0))
    assert line(explain(got), "async_overlap").split()[1:4] == ["5", "x", "30"]
    got.decide(situation(host_rows=15, free_host_tokens=0))
    assert line(explain(got), "asymmetric_pipelining").split()[1:4] == ["2", "x", "7-8"]


def test_a_limit_and_what_it_rules_out():
    """15 rows take the host 24 s: async_overlap's tokens take 30 s, pipelining's 25."""
    got = planner(host_token=0.04, max_time_per_token=26.0)
    got.decide(situation(host_rows=15, free_host_tokens=0))
    text = explain(got)
    assert line(text, "limit") == "limit       26,000 ms a token"
    chosen = " ".join(text[text.index("chosen") :].split())
    assert "device_only (host requests get no tokens), layer_sync (28,000 ms), async_overlap (30,000 ms)" in chosen
    assert "would break the limit of 26,000 ms a token" in chosen


def test_it_fits_on_a_screen():
    got = planner(migration=0.001)
    for rows in (0, 10, 0, 10, 200):
        got.decide(situation(host_rows=rows, waiting=50, waiting_tokens=500, prefill_tokens=64))
    prediction = got.choices[-1].candidates["layer_sync"].prediction
    for _ in range(100):
        got.model.observe(prediction, Measured(iteration_s=1.0, host_busy_s=0.5))
    lines = explain(got).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 130


def test_the_papers_rule_with_both_sides_filled_in():
    """T_lin = 4, T_att = 2, N_G/N_C = 0.02/0.02: 1 < 2 * 2 + 3 + 0.5."""
    got = planner()
    got.decide(situation(host_rows=10, free_host_tokens=0))
    text = explain(got)
    assert "1.00 < 2 * 4,000/2,000 + 3 + 2,000/4,000 = 7.50: holds" in text
    slow = planner(host_token=0.04)
    slow.decide(situation(host_rows=10, free_host_tokens=0))
    assert "8.00 < 2 * 4,000/2,000 + 3 + 2,000/4,000 = 7.50: does not hold" in explain(slow)


def test_the_rule_with_prompts():
    """T_pre = 3: (8 + 2 + 3) (4 + 2 + 3) / 8 = 14.625."""
    got = planner(pair=3.0, host_token=0.04)
    got.decide(situation(host_rows=10, free_host_tokens=0, prefill_tokens=1))
    assert re.search(r"with prompts of T_pre = 3,000 ms.* = 14\.6[23]: holds", explain(got))


def test_where_nothing_has_room():
    got = planner()
    got.decide(situation(device_rows=0, device_kv_tokens=0, waiting=5, waiting_tokens=80, free_host_tokens=0))
    assert "chosen      device_only: no request has to go to the host, or none can" in explain(got)


def test_where_the_rule_says_nothing():
    got = planner()
    got.decide(situation(remaining_tokens=1, free_device_tokens=1000))
    text = explain(got)
    assert "says nothing without decode attention on both sides" in text
    assert "all requests fit on the device" in text


def test_predictions_beside_what_happened():
    got = planner()
    got.decide(situation(host_rows=10))
    assert "no iteration has been measured yet" in explain(got)
    prediction = got.choices[-1].candidates["layer_sync"].prediction
    for error in (0.0, 0.1, -0.2):
        got.model.observe(prediction, Measured(iteration_s=6 * (1 + error), host_busy_s=2.5))
    text = explain(got)
    assert "the last 3 iterations: measured differs from predicted by 10.0% in the median, 20.0% at the 90th" in text
    assert "predicted   6,000 ms, host busy 2,000 ms; measured   4,800 ms, host busy 2,500 ms" in text


def test_corrections_are_shown():
    got = planner()
    got.decide(situation(host_rows=10))
    assert line(explain(got), "corrections") == "corrections none"
    prediction = got.choices[-1].candidates["device_only"].prediction
    for _ in range(20):
        got.model.observe(prediction, Measured(iteration_s=18.0))
    factors = got.model.factors
    assert f"linear x {factors.linear:.2f}, device attention x {factors.device_attention:.2f}" in explain(got)


@pytest.mark.parametrize(
    ("curves", "text"),
    [
        ({}, None),
        ({"layer": Curve(points=((1, 1.0), (16, 1.0)))}, "20 rows of a pass (measured: 1 to 16)"),
        ({"head": Curve(points=((1, 0.0), (16, 0.0)))}, "20 rows that sample (measured: 1 to 16)"),
        ({"hop": Curve(points=((1, 0.0), (8, 0.0)))}, "10 rows of a handover (measured: 1 to 8)"),
        ({"boarding": Curve(points=((1, 0.0), (8, 0.0)))}, "10 rows that board (measured: 1 to 8)"),
        ({"migration": Curve(points=((0, 0.0), (9, 0.0)))}, "10 tokens that move (measured: 0 to 9)"),
        (
            {"host_attention": AttentionTime(rows=Curve.constant(0.0), tokens=Curve(points=((0, 0.0), (50, 0.25))))},
            "100 cached tokens of a cohort (measured: 0 to 50)",
        ),
        (
            {"host_attention": AttentionTime(rows=Curve(points=((1, 0.1), (8, 0.2))), tokens=Curve.constant(0.0))},
            "10 rows of a cohort (measured: 1 to 8)",
        ),
    ],
)
def test_what_the_profile_does_not_cover_is_said(curves, text):
    """10 device rows and 10 host rows of 10 tokens, all of which ride with layer_sync."""
    got = planner(curves=curves)
    got.decide(situation(host_rows=10, free_host_tokens=0))
    shown = explain(got)
    marked = [row for row in shown.splitlines() if row.strip().startswith("layer_sync") and row.endswith(" *")]
    assert bool(marked) == (text is not None) == ("beyond what the profile covers" in shown)
    assert text is None or text in " ".join(shown.split())
    assert not line(shown, "device_only").endswith("*")


def test_values_for_programs():
    """Before a decision there is no more than the machine; after it everything that the text says, and nothing that
    JSON does not have."""
    got = planner(max_time_per_token=26.0, host_token=0.04)
    assert set(explain_values(got)) == {"machine", "corrections", "max_time_per_token", "recent"}
    got.decide(situation(host_rows=15, free_host_tokens=0))
    prediction = got.choices[-1].candidates["layer_sync"].prediction
    got.model.observe(prediction, Measured(iteration_s=28.0, host_busy_s=24.0))
    values = json.loads(json.dumps(explain_values(got), allow_nan=False))
    assert values["decision"]["strategy"] == "asymmetric_pipelining"
    assert values["decision"]["reason"] in " ".join(explain(got).split())
    assert values["candidates"]["device_only"]["host_token_s"] is None
    assert values["candidates"]["layer_sync"]["host_token_s"] == pytest.approx(28)
    assert values["candidates"]["layer_sync"]["device_wait_s"] == pytest.approx(22)
    assert values["recent"][0]["measured_s"] == 28.0


def test_courses_are_told_apart():
    """10 of 60 requests fit on the device."""
    lengths = Roster(device=[(10, 100)] * 10, waiting=[(10, 100)] * 50)
    got = planner()
    rows = {"waiting": 50, "waiting_tokens": 500, "waiting_first": 10, "waiting_output": 5000, "remaining_tokens": 1000}
    got.settle(situation(**rows, roster=lambda: lengths))
    shown = explain(got)
    courses = shown[shown.index("until the last request ends") :].split("\n\n")[0].splitlines()[1:]
    assert len(courses) == len({(row.split()[0], row[36:]) for row in courses}) > 3
    assert any("of them at once" in row for row in courses)
    assert any("at rest where they do not make up for their time" in row for row in courses)
    assert line("\n".join(courses), "device_only").endswith("none on the host")
    assert {row["strategy"] for row in explain_values(got)["courses"]} == {row.split()[0] for row in courses}
