"""The check of GPU machines, run without a GPU: every part of it, with tiny shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apex_jax.scheduler import STRATEGIES
from apex_jax.tracing.trace_file import load

ROOT = Path(__file__).parents[2]
SECTIONS = ("gpu_tests", "facts", "host", "decode", "strategies", "baseline")
MINUTES = "20"
"""Far more than it takes: time that runs out has a test of its own."""


def check(out, *arguments):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(out), "APEX_JAX_INSTALLED": "1"}
    environment |= {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [ROOT / "scripts" / "gpu_check.sh", *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """What a run has left behind."""
    out = tmp_path_factory.mktemp("gpu_check")
    run = check(out, MINUTES)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def rows(rehearsal, section, number=0):
    """The rows of a section's table, each as a mapping."""
    table = json.loads((rehearsal / "report.json").read_text())["sections"][section]["tables"][number]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


@pytest.mark.slow
def test_every_section_completes(rehearsal):
    report = json.loads((rehearsal / "report.json").read_text())
    assert report["tiny"]
    assert tuple(report["sections"]) == SECTIONS
    assert {section["status"] for section in report["sections"].values()} == {"completed"}
    allowed = ("cudnn", "left out, torch is not installed")
    failures = [line for section in report["sections"].values() for line in section["failures"]]
    assert not [line for line in failures if not any(reason in line for reason in allowed)]
    text = (rehearsal / "report.txt").read_text()
    assert text.startswith("REHEARSAL")
    assert all(f"({number})" in text for number in range(1, 7))


@pytest.mark.slow
def test_what_it_finds(rehearsal):
    tests = rows(rehearsal, "gpu_tests")
    assert tests
    assert {row["outcome"] for row in tests} == {"passed"}
    candidates = rows(rehearsal, "decode", 1)
    assert len(candidates) >= 5
    # Half types round what is compared with float32.
    assert all(row["error"] < 0.01 for row in candidates)
    assert all(row["error"] < 1e-4 for row in rows(rehearsal, "host"))
    for direction in (2, 3):
        assert {row["bytes"] for row in rows(rehearsal, "facts", direction)} == {4096, 65536}


@pytest.mark.slow
def test_strategies_have_host_rows_predictions_and_traces(rehearsal):
    found = {row["strategy"]: row for row in rows(rehearsal, "strategies")}
    assert tuple(found) == (*STRATEGIES, "auto")
    for name in STRATEGIES:
        row = found[name]
        assert row["tokens/s"] > 0
        assert row["achieved / predicted"] == pytest.approx(row["tokens/s"] / row["predicted"])
        assert (row["host rows"] > 0) == (name != "device_only")
        # Of the rates that earlier sections have measured; what a profile says is in the next table.
        assert row["predicted"] > 0
        trace = load(rehearsal / f"trace_tiny_{row['KV GiB']:g}GiB_{name}.json")
        assert {"device", "python"} <= {span.track for span in trace.spans}
    assert [row["strategy"] for row in rows(rehearsal, "strategies", 1)] == list(STRATEGIES)
    (explanation,) = rehearsal.glob("explain_tiny_*.txt")
    assert "measured" in explanation.read_text().splitlines()[0]


def test_what_there_is_no_time_for_is_skipped_and_said(tmp_path):
    run = check(tmp_path, "0.2")
    report = json.loads((tmp_path / "report.json").read_text())
    assert all("skipped" in section["status"] for section in report["sections"].values())
    assert run.returncode == 1


@pytest.mark.parametrize("arguments", [("soon",), ("-1",), ("1", "2")])
def test_minutes_that_are_none(tmp_path, arguments):
    run = check(tmp_path, *arguments)
    assert run.returncode == 2
    assert "minutes are a positive number" in run.stderr
