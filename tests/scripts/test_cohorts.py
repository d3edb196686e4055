"""The benchmark of cohorts, on a toy machine: that it measures what it is told to. Not what the numbers are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "cohorts.py"
TOY = {
    "devices": [
        {
            "name": "toy",
            "memory_gb": 1,
            "weights_gb_per_s": 0.1,
            "attention_gb_per_s": 1,
            "tflops": 1,
            "link_gb_per_s": 1,
        }
    ],
    "models": [
        {
            "name": "toy",
            "num_layers": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "intermediate_size": 128,
            "vocab_size": 128,
        }
    ],
}
LOADS = [0.9, 1.0, 1.1, 1.3]


@pytest.fixture
def bench(tmp_path):
    """(arguments...) -> the finished process of a toy machine's benchmark."""
    hardware = tmp_path / "toy.json"
    hardware.write_text(json.dumps(TOY), encoding="utf-8")
    machine = ("--hardware", hardware, "--device=toy", "--shape=toy", "--device-kv-tokens=512", "--context=100")

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
    assert [row["load"] for row in found["replayed"] if not row["as_measured"]] == 2 * LOADS
    for row in found["replayed"]:
        assert row["kind"] == "replayed"
        assert row["wait"]["missed"] == row["sit_out"]["waited"] == 0
        assert row["wait_sized"]["tokens_per_s"] >= row["wait"]["tokens_per_s"] > 0


def test_more_requests_than_fit(bench):
    run = bench("--host-requests", "10000")
    assert run.returncode == 1
    assert "--host-requests is [10000]; 1 to " in run.stderr
