"""The simulator against published sweeps of a pipelined hybrid engine; nothing is fitted to their rows."""

import csv
from statistics import mean

import pytest

from apex_jax.reproduce.anchors import a10g_gain, t4_gpu_only, t4_hybrid


def rows(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def errors(file, column, simulate):
    return [
        simulate(prompt=int(row["input_tokens"]), output=int(row["output_tokens"])) / float(row[column]) - 1
        for row in rows(file)
    ]


@pytest.mark.slow
def test_pipelining_on_t4(anchors):
    found = errors(anchors / "pipelining_t4_sweep.csv", "hybrid_requests_per_s", t4_hybrid)
    assert mean(map(abs, found)) <= 0.05
    assert max(map(abs, found)) <= 0.12


def test_gpu_only_on_t4(anchors):
    found = errors(anchors / "pipelining_t4_sweep.csv", "gpu_only_requests_per_s", t4_gpu_only)
    assert mean(map(abs, found)) <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("cores", [8, 32])
def test_the_hump_on_a10g(anchors, cores):
    published = {
        int(row["output_tokens"]): float(row["relative_throughput"])
        for row in rows(anchors / "pipelining_a10g_gain.csv")
        if int(row["cpu_cores"]) == cores
    }
    simulated = {output: a10g_gain(cores=cores, prompt=1000, output=output) for output in published}
    peak = max(published, key=lambda output: published[output])
    assert max(simulated, key=lambda output: simulated[output]) == peak
    assert simulated[peak] == pytest.approx(published[peak], rel=0.15)


def test_other_instances_are_refused():
    with pytest.raises(ValueError, match="cores is 4; the sweep has instances of 8, 16, 32"):
        a10g_gain(cores=4, prompt=10, output=10)
