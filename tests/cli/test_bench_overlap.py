"""`apex-jax bench overlap`: that it measures what it is told to. What the numbers are is no matter of tests."""

import io
import json

import pytest

from apex_jax.bench import overlap as overlap_bench
from apex_jax.bench.overlap import OverlapBenchmark
from apex_jax.bench.report import print_rows
from apex_jax.tracing.recorder import load


@pytest.fixture
def bench(command, toy_hardware):
    """(arguments...) -> (exit status, standard output, standard error) of a toy machine's benchmark."""

    def call(*arguments):
        machine = (
            "--hardware",
            toy_hardware,
            "--device=toy",
            "--shape=toy",
            "--device-kv-tokens=512",
            "--page-size=16",
        )
        defaults = ("--context=64", "--host-kv-gb=0.003", "--rounds=2", "--seconds=0.05")
        return command("bench", "overlap", *machine, *defaults, *arguments)

    return call


def test_rows(bench, tmp_path):
    trace = tmp_path / "trace.json"
    status, out, err = bench("--json", "--trace", trace)
    assert status == 0, err
    table = json.loads(out)
    strategies = ["device_only", "layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane"]
    assert [row["strategy"] for row in table] == strategies
    for row in table:
        assert (row["kind"], row["device"], row["shape"], row["device_kv_tokens"]) == ("emulated", "toy", "toy", 512)
        assert row["rounds"] == 2
        low, high = row["tokens_per_s_spread"]
        assert 0 < low <= row["tokens_per_s"] <= high
        least, most = row["achieved_over_predicted_spread"]
        assert least <= row["achieved_over_predicted"] <= most
        assert row["predicted_tokens_per_s"] > 0
        assert 0 < row["tpot_device_ms"] <= row["tpot_device_p99_ms"]
        assert 0 < row["device_busy"] <= 1.1
        hosted = row["strategy"] != "device_only"
        assert (row["tpot_host_ms"] is not None) == hosted
        assert (row["host_requests"] > 0) == (row["host_busy"] > 0) == hosted
        assert row["device_requests"] * row["device_context"] <= 512
    recorded = load(trace)
    assert recorded.label == "emulated"
    assert {span.args["strategy"] for span in recorded.spans if span.name == "iteration"} == set(strategies)


def test_more_kv_than_the_card_has_is_warned_of(bench, toy_hardware):
    """512 tokens of 3 layers, 2 heads of 16 and 2 bytes a number take 197 kB, more than what is left of 300 kB."""
    few = ("--strategies", "device_only", "--rounds=1")
    assert bench(*few)[2] == ""
    content = json.loads(toy_hardware.read_text())
    content["devices"][0]["memory_gb"] = 0.0003
    toy_hardware.write_text(json.dumps(content))
    status, out, err = bench(*few)
    assert status == 0
    assert err.startswith("warning: toy's weights of ")
    assert "512 tokens of KV, 0.000197 GB, exceed toy's 0.0003 GB" in err
    assert err.count("\n") == 1
    assert out.startswith("emulated toy")


def test_table_says_what_is_emulated(bench):
    status, out, _ = bench("--strategies", "device_only", "--rounds=1")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].startswith("emulated toy with toy, KV of 512 tokens")
    assert "cores" in lines[1]
    assert "jax " in lines[1]
    assert [line.split()[0] for line in lines if line.startswith("device_only")] == ["device_only"] * 2


def test_finite_batches(bench):
    status, out, err = bench("--requests", "1", "12", "--output=20", "--rounds=1", "--json")
    assert status == 0, err
    table = json.loads(out)
    assert [(row["requests"], row["strategy"]) for row in table] == [
        (1, "device_only"),
        (1, "auto"),
        (12, "device_only"),
        (12, "auto"),
    ]
    for row in table:
        assert (row["kind"], row["device"], row["shape"], row["device_kv_tokens"]) == ("emulated", "toy", "toy", 512)
        assert (row["rounds"], row["output"], row["host_kv_gb"], row["context"]) == (1, 20, 0.003, 64)
        assert row["output_tokens"] == 20 * row["requests"]
        assert row["simulated_over_emulated"] == pytest.approx(row["simulated_seconds"] / row["seconds"])
        assert row["seconds"] > 0
        assert row["tokens_per_s"] == pytest.approx(row["output_tokens"] / row["seconds"])
        assert row["host"]
        assert {"apex_jax", "jax", "numpy"} <= row["versions"].keys()
        if row["strategy"] == "device_only":
            assert (row["over_device_only"], row["host_tokens"], row["evictions"]) == (1, 0, 0)


def test_a_trace_that_cannot_be_written_is_refused_before_anything_runs(bench, monkeypatch):
    monkeypatch.setattr(OverlapBenchmark, "steady_load", lambda _: pytest.fail("the benchmark has begun"))
    assert bench("--trace=/no/such/folder/x.json")[0] == 2


def test_rows_are_printed_even_if_the_trace_cannot_be_written(bench, tmp_path, monkeypatch):
    """The folder goes away while the strategies have their turns."""
    folder = tmp_path / "traces"
    folder.mkdir()
    trace = folder / "x.json"
    run = overlap_bench.run

    def run_and_lose_the_folder(*arguments, **options):
        turns = run(*arguments, **options)
        folder.rmdir()
        return turns

    monkeypatch.setattr(overlap_bench, "run", run_and_lose_the_folder)
    status, out, err = bench("--strategies", "device_only", "--rounds=1", "--json", "--trace", trace)
    assert status == 2
    assert [row["strategy"] for row in json.loads(out)] == ["device_only"]
    assert f"{trace}: No such file or directory" in err
    assert ".part" not in err


def test_batches_as_text(bench):
    status, out, _ = bench("--requests", "2", "--output=20", "--rounds=1")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("emulated toy with toy, KV of 512 tokens")
    assert "jax " in lines[1]
    assert [line.split()[:2] for line in lines if line.startswith(("auto", "device_only"))] == [
        ["device_only", "2"],
        ["auto", "2"],
    ]


@pytest.mark.parametrize("extrapolated", [True, False])
def test_extrapolated_predictions_are_marked(bench, extrapolated):
    _, out, _ = bench("--strategies", "device_only", "layer_sync", "--rounds=1", "--json")
    table = json.loads(out)
    for row in table:
        row["extrapolated"] = extrapolated and row["strategy"] == "layer_sync"
    lines = []
    print_rows(table, lines.append)
    marked = [line.split()[0] for line in lines if "*" in line]
    assert marked == (["layer_sync", "*"] if extrapolated else [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device=t5"], "unknown device 't5'"),
        (["--shape=llama"], "unknown model 'llama'"),
        (["--strategies", "fast"], "invalid choice: 'fast'"),
        (["--host-kv-gb=0"], "'0' is not a number above 0"),
        (["--host-kv-gb=0.00001"], "host_kv_bytes is 10000; not one request of 64 tokens fits"),
        (["--host-kv-gb=999999"], "bytes was asked for"),
        (["--device-kv-tokens=100"], "device_kv_tokens is 100; requests of 64 tokens need 192"),
        (["--context=8"], "context is 8; at least 16 is needed"),
        (["--page-size=10"], "page_size is 10, allowed are"),
        (["--requests", "0"], "'0' is not a whole number of at least 1"),
        (["--requests", "1", "--output=128"], "--output 128 leaves no prompt in a mean context of 64"),
        (["--requests", "3", "2", "3"], "--requests has 3 more than once"),
        (["--strategies", "layer_sync", "layer_sync"], "--strategies has layer_sync more than once"),
        (["--requests", "1", "--strategies", "layer_sync"], "--strategies is for the steady state"),
        (["--output=20"], "--output is for finite batches; give --requests"),
        (["--requests", "1", "--trace=x.json"], "--trace is for the steady state"),
        (["--trace=/no/such/folder/x.json"], "/no/such/folder/x.json: No such file or directory"),
    ],
)
def test_mistakes(bench, arguments, message):
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_terminal_is_told_what_is_under_way(bench, monkeypatch):
    """Every step has its name: none is left over, and none is missing at the end."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    assert bench("--strategies", "device_only", "layer_sync")[0] == 0
    said = terminal.getvalue()
    for step in ("Taking 0.003 GB", "round 1 of 2: device_only", "round 2 of 2: layer_sync", "7/7", "done"):
        assert step in said
    terminal.truncate(0)
    assert bench("--requests", "1", "3", "--output=20", "--rounds=1")[0] == 0
    said = terminal.getvalue()
    for step in ("1 requests: device_only, round 1", "3 requests: auto, round 1", "7/7", "done"):
        assert step in said
