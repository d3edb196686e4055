"""The benchmark of cohorts, on a toy machine: that it measures what it is told to. Not what the numbers are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "cohorts.py"


@pytest.fixture
def bench(toy_hardware):
    """(arguments...) -> the finished process of a toy machine's benchmark."""
    machine = ("--hardware", toy_hardware, "--device=toy", "--shape=toy", "--device-kv-tokens=512", "--context=100")

    def call(*arguments):
        times = ("--host-kv-gb=0.005", "--rounds=1", "--seconds=0.05")
        command = [sys.executable, FILE, *machine, *times, *arguments]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)

    return call


def test_rows(bench):
    run = bench("--host-requests", "8", "--cohorts", "1", "4", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert [(row["host_requests"], row["cohorts"], row["rows"]) for row in found["emulated"]] == [(8, 1, 8), (8, 4, 2)]
    for row in found["emulated"]:
        assert row["kind"] == "emulated"
        assert row["tokens_per_s"] > 0
        assert 0 < row["job_ms"][0] <= row["job_ms"][1] <= row["job_ms"][2]


def test_more_requests_than_fit(bench):
    run = bench("--host-requests", "10000")
    assert run.returncode == 1
    assert "--host-requests is [10000]; 1 to " in run.stderr
