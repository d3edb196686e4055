"""`apex-jax simulate` and `apex-jax reproduce`: what they print, and the mistakes they name."""

import csv
import json

import pytest

from apex_jax.scheduler.cost_model.catalogue import Catalogue

SMALL = ("--model", "llama-3.2-1b", "--device-kv-tokens", "2000", "--host-kv-gb", "1")
SIZES = ("--input", "100", "--output", "40", "--requests", "50")
KEYS = {
    "kind",
    "device",
    "host",
    "model",
    "strategy",
    "requests_per_s",
    "tokens_per_s",
    "tpot_device_ms",
    "tpot_host_ms",
    "device_kv_tokens",
    "host_kv_gb",
    "iterations",
}


@pytest.mark.parametrize("strategy", ["auto", "device_only", "layer_sync", "asymmetric_pipelining", "async_overlap"])
def test_json(command, strategy):
    status, out, err = command("simulate", *SMALL, *SIZES, "--strategy", strategy, "--json")
    assert status == 0, err
    row = json.loads(out)
    assert row.keys() >= KEYS
    assert (row["kind"], row["strategy"]) == ("simulated", strategy)
    assert (row["requests"], row["output_tokens"], row["device_kv_tokens"]) == (50, 2000, 2000)
    assert row["tokens_per_s"] == pytest.approx(2000 / row["seconds"])
    assert row["requests_per_s"] == pytest.approx(50 / row["seconds"])
    assert (row["tpot_host_ms"] is None) == (row["host_tokens"] == 0)


def test_text(command):
    status, out, err = command("simulate", *SMALL, *SIZES, "--strategy", "layer_sync")
    assert status == 0, err
    assert "(simulated)" in out.splitlines()[0]
    assert "50 requests, 5,000 prompt and 2,000 output tokens" in out


@pytest.mark.parametrize(("device", "host"), [("t4", "g4dn.4xlarge"), ("A10", "2x-xeon-gold-6342")])
def test_the_host_that_goes_with_a_device_is_named(command, device, host):
    status, out, err = command("simulate", *SMALL, *SIZES, "--device", device)
    assert status == 0, err
    assert f"with {host} (assumed, see --host)" in out
    _, out, _ = command("simulate", *SMALL, *SIZES, "--device", device, "--host", "g5.4xlarge", "--json")
    assert (json.loads(out)["host"], json.loads(out)["host_assumed"]) == ("g5.4xlarge", False)


def test_every_device_has_a_host_and_a_device_of_ones_own_needs_one(command, tmp_path):
    known = Catalogue.built_in()
    assert all(known.host_beside(device) for device in known.devices.values())
    entry = {"name": "mine", "memory_gb": 24, "weights_gb_per_s": 600, "attention_gb_per_s": 600, "tflops": 90}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"devices": [{**entry, "link_gb_per_s": 20}]}))
    status, _, err = command("simulate", *SMALL, *SIZES, "--hardware", file, "--device", "mine")
    assert status == 2
    assert "no host is known to go with device 'mine'; name one, known are g4dn.4xlarge" in err


def test_trace(command, tmp_path):
    """The second request comes 100 s later; the third is too long for the device."""
    file = tmp_path / "trace.json"
    lengths = [(100, 20, 0), (100, 20, 100), (5000, 20, 0)]
    file.write_text(json.dumps([{"prompt": p, "max_tokens": o, "arrival_s": s} for p, o, s in lengths]))
    status, out, err = command("simulate", *SMALL, "--recorded", file, "--timed", "--json")
    assert status == 0, err
    row = json.loads(out)
    assert (row["requests"], row["requests_too_long"]) == (2, 1)
    assert 100 < row["seconds"] < 110
    status, out, _ = command("simulate", *SMALL, "--recorded", file, "--json")
    assert json.loads(out)["seconds"] < 10


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        # 16.1 GB of weights, and 131,072 bytes a token.
        (
            ["--device=h100", "--model=llama-3.1-8b", "--device-kv-tokens=1000000"],
            "llama-3.1-8b's weights of 16.1 GB and 1,000,000 tokens of KV, 131 GB, exceed h100's 80 GB",
        ),
        (
            ["--device=t4", "--model=llama-3.1-70b", "--device-kv-tokens=2000"],
            "llama-3.1-70b's weights of 141 GB and 2,000 tokens of KV, 0.655 GB, exceed t4's 16 GB",
        ),
        (["--host-kv-gb=500"], "500 GB of KV exceed g4dn.4xlarge's 68.7 GB"),
        (
            ["--host-kv-gb=500", "--device-kv-tokens=5000"],
            "llama-2-7b's weights of 13.5 GB and 5,000 tokens of KV, 2.62 GB, exceed t4's 16 GB; 500 GB of KV exceed",
        ),
        (["--host-kv-gb=68", "--device-kv-tokens=4800"], None),
        ([], None),
    ],
)
def test_more_memory_than_there_is(command, arguments, warning):
    """A T4 has 16 GB: 13.48 of weights and 4,800 tokens of 0.52 MB fit, 5,000 do not."""
    status, out, err = command("simulate", *arguments, "--input=20", "--output=5", "--requests=2", "--json")
    assert status == 0
    assert json.loads(out)["requests"] == 2
    if warning is None:
        assert err == ""
    else:
        assert err.startswith(f"warning: {warning}")
        assert err.count("\n") == 1


def test_padded_batches_cost_more_and_never_less(command):
    """Five requests of one page decode as eight."""
    arguments = ("--model", "llama-2-7b", "--input", "16", "--output", "50", "--requests", "5", "--json")
    arguments += ("--strategy", "device_only", "--device", "a10g", "--host", "g5.4xlarge")
    exact, padded = (json.loads(command("simulate", *arguments, *more)[1]) for more in ((), ("--pad-batches",)))
    assert (exact["pad_batches"], padded["pad_batches"]) == (False, True)
    eight = json.loads(command("simulate", *arguments[:7], "8", *arguments[8:])[1])
    assert exact["seconds"] < padded["seconds"] < eight["seconds"]


def test_random_arrivals(command):
    """50 requests, 2 a second: about 25 s."""
    _, out, _ = command("simulate", *SMALL, *SIZES, "--rate", "2", "--json")
    assert 15 < json.loads(out)["seconds"] < 40


def test_own_hardware(command, tmp_path):
    file = tmp_path / "own.json"
    host = {"name": "box", "cores": 4, "memory_gb": 32, "attention_gb_per_s": 20}
    file.write_text(json.dumps({"hosts": [host]}))
    status, out, err = command("simulate", *SMALL, *SIZES, "--hardware", file, "--host", "box", "--json")
    assert status == 0, err
    assert json.loads(out)["host_attention_gb_per_s"] == 20


def test_list(command):
    status, out, _ = command("simulate", "--list")
    assert status == 0
    for name in ("t4", "a10", "a10g", "l4", "rtx-4090", "h100", "g4dn.4xlarge", "2x-xeon-gold-6130", "llama-2-7b"):
        assert f"  {name}" in out
    assert "assumed" in out


def test_list_shows_every_number_of_own_hardware(command, tmp_path):
    file = tmp_path / "own.json"
    device = {
        "name": "mine",
        "memory_gb": 11.5,
        "weights_gb_per_s": 601,
        "attention_gb_per_s": 602,
        "tflops": 91,
        "link_gb_per_s": 21,
        "iteration_us": 3,
        "sources": {"tflops": "measured with a stopwatch"},
    }
    host = {"name": "box", "cores": 4, "memory_gb": 33, "attention_gb_per_s": 20.5}
    model = {
        "name": "tiny",
        "num_layers": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 999,
        "kv_bytes": 1,
        "tied": True,
    }
    file.write_text(json.dumps({"devices": [device], "hosts": [host], "models": [model]}))
    status, out, _ = command("simulate", "--list", "--hardware", file)
    assert status == 0
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    begin, end = lines.index(["mine"]), lines.index(["hosts"])
    assert lines[begin + 1 : end] == [
        ["memory_gb", "11.5", "no source given"],
        ["weights_gb_per_s", "601", "no source given"],
        ["attention_gb_per_s", "602", "no source given"],
        ["tflops", "91", "measured with a stopwatch"],
        ["link_gb_per_s", "21", "no source given"],
        ["overlap", "1", "assumed: the default"],
        ["link_us", "0", "assumed: the default"],
        ["layer_us", "0", "assumed: the default"],
        ["iteration_us", "3", "no source given"],
    ]
    begin = lines.index(["box"])
    assert lines[begin + 1 : begin + 6] == [
        ["cores", "4", "no source given"],
        ["memory_gb", "33", "no source given"],
        ["attention_gb_per_s", "20.5", "no source given"],
        ["job_us", "0", "assumed: the default"],
        ["row_us", "0", "assumed: the default"],
    ]
    (tiny,) = (line for line in out.splitlines() if line.startswith("  tiny "))
    for part in ("L2 D64 N4 K2 H16 F128 V999", "2 bytes a weight, 1 a number of KV", "tied"):
        assert part in tiny


def test_no_number_that_ships_is_without_a_source(command):
    assert "no source given" not in command("simulate", "--list")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a workload: --recorded FILE, or --input N --output N"),
        (["--input", "5"], "give a workload"),
        ([*SIZES, "--device", "abacus"], "unknown device 'abacus'; known are a10, a10g, h100, l4, rtx-4090, t4"),
        ([*SIZES, "--host", "abacus"], "unknown host 'abacus'; known are 2x-xeon"),
        ([*SIZES, "--model", "abacus"], "unknown model 'abacus'; known are llama-2-13b"),
        ([*SIZES, "--strategy", "best"], "invalid choice: 'best'"),
        (["--input", "0", "--output", "5"], "'0' is not a whole number of at least 1"),
        ([*SIZES[:4], "--requests", "-1"], "'-1' is not a whole number of at least 1"),
        ([*SIZES, "--host-kv-gb", "0"], "'0' is not a number above 0"),
        ([*SIZES, "--host-kv-gb", "1e300"], "'1e300' is not a number above 0 and below 1e+09"),
        ([*SIZES, "--rate", "-2"], "'-2' is not a number above 0"),
        ([*SIZES, "--rate", "0"], "'0' is not a number above 0"),
        ([*SIZES, "--max-time-per-token", "nan"], "'nan' is not a number above 0"),
        ([*SIZES, "--max-time-per-token", "1", "--strategy", "device_only"], "max_time_per_token=1.0 chooses among"),
        ([*SIZES, "--rate", "nan"], "'nan' is not a number above 0"),
        ([*SIZES, "--rate", "often"], "'often' is not a number above 0"),
        ([*SIZES, "--iteration-overhead-ms", "-1"], "'-1' is not a number of at least 0"),
        ([*SIZES, "--device-kv-tokens", "many"], "'many' is not a whole number"),
        (
            ["--trace", "t.csv"],
            "requests to serve are given with --recorded t.csv; --trace is what other commands write",
        ),
        ([*SIZES, "--timed"], "--timed is for --recorded"),
        (["--recorded", "none.csv"], "none.csv: No such file or directory"),
        (["--recorded", "none.csv", *SIZES], "--recorded brings its own lengths"),
        ([*SIZES, "--hardware", "none.json"], "none.json: No such file or directory"),
        ([*SIZES, "--device-kv-tokens", "100"], "exceeds the device KV of 96 tokens"),
        ([*SIZES, "--model", "llama-3.1-70b"], "leave no room for KV"),
    ],
)
def test_mistakes(command, arguments, message):
    status, out, err = command("simulate", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_arrivals_that_are_not_there(command, tmp_path):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps([{"prompt": 10, "max_tokens": 5, "arrival_s": 3}, {"prompt": 10, "max_tokens": 5}]))
    status, out, err = command("simulate", *SMALL, "--recorded", file, "--timed")
    assert (status, out) == (2, "")
    assert "--timed: " in err
    assert "trace.json has requests without arrival_s" in err
    assert command("simulate", *SMALL, "--recorded", file)[0] == 0


def test_requests_without_output_are_counted(command, tmp_path):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps([{"prompt": 10, "max_tokens": output} for output in (5, 0, 0)]))
    _, out, _ = command("simulate", *SMALL, "--recorded", file, "--json")
    row = json.loads(out)
    assert (row["requests"], row["requests_without_output"], row["requests_too_long"]) == (1, 2, 0)
    _, out, _ = command("simulate", *SMALL, "--recorded", file)
    assert "left out       2 requests of the file, which have no output" in out


def test_a_malformed_trace(command, tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("a,b\n1,2\n")
    status, _, err = command("simulate", "--recorded", file)
    assert status == 2
    assert "has no column TIMESTAMP" in err


def test_reproduce(command, tmp_path):
    """Ten requests of each kind: all tables and figures come, whatever such small numbers say."""
    folder = tmp_path / "results"
    status, out, err = command("reproduce", "--out", folder, "--requests", "10")
    assert status == 0, err
    assert "verdict" in out
    tables = {file.stem: list(csv.DictReader(file.read_text().splitlines())) for file in folder.glob("*.csv")}
    assert tables.keys() == {"simulations", "gain_over_output", "steady_decode", "gains", "claims"}
    assert all(tables.values())
    assert {row["verdict"] for row in tables["claims"]} <= {"reproduced", "partly", "not reproduced"}
    assert len(tables["claims"]) == 12
    drawn = (
        "throughput",
        "throughput_at_papers_ratio",
        "gain_over_output",
        "steady_decode",
        "time_per_token",
        "claims",
    )
    for name in drawn:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text()


def azure_file(folder, *prompts):
    file = folder / "trace.csv"
    rows = [f"2023-11-16 18:15:46,{prompt},10\n" for prompt in prompts]
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(rows))
    return file


def test_reproduce_leaves_out_what_fits_nowhere_on_a_machine(command, tmp_path):
    """A T4 holds 1,189 tokens beside the weights and 4,800 at most: of 3,000 one set-up of three has room."""
    folder = tmp_path / "results"
    trace = azure_file(tmp_path, 3000)
    status, out, err = command("reproduce", "--out", folder, "--requests", "1", "--azure-code", trace)
    assert status == 0, err
    assert "left out: code on T4, nominal: none of 1 requests fits into the 1,185 tokens" in out
    assert "left out: code on T4, host 20 GB/s" in out
    rows = list(csv.DictReader((folder / "simulations.csv").read_text().splitlines()))
    code = {(row["machine"], row["setup"]) for row in rows if row["workload"] == "code"}
    assert {setup for machine, setup in code if machine == "T4"} == {"host 45 GB/s, device KV 4,800"}
    assert ("A10", "nominal") in code
    assert {row["machine"] for row in rows if row["workload"] == "short"} == {"T4", "A10"}


def test_reproduce_refuses_lengths_that_fit_no_machine(command, tmp_path):
    folder = tmp_path / "results"
    trace = azure_file(tmp_path, 90_000)
    status, out, err = command("reproduce", "--out", folder, "--azure-code", trace)
    assert (status, out) == (2, "")
    assert "trace.csv: no request fits into the " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "0"], "'0' is not a whole number of at least 1"),
        (["--azure-code", "none.csv"], "none.csv: No such file or directory"),
    ],
)
def test_reproduce_mistakes(command, tmp_path, arguments, message):
    status, _, err = command("reproduce", "--out", tmp_path, *arguments)
    assert status == 2
    assert message in err


def test_a_limit_on_time_per_token(command):
    """Llama-2-7B leaves a T4 room for one request of this size; of the others as many as keep the limit go to the
    host."""
    workload = ("--model", "llama-2-7b", "--input", "500", "--output", "300", "--requests", "40", "--seed", "0")
    rows = {}
    for limit in (None, 0.2):
        given = () if limit is None else ("--max-time-per-token", str(limit))
        status, out, err = command("simulate", *workload, *given, "--json")
        assert status == 0, err
        rows[limit] = json.loads(out)
        assert rows[limit]["max_time_per_token"] == limit
    assert rows[None]["tpot_host_ms"] > 250
    assert max(rows[0.2]["tpot_host_ms"], rows[0.2]["tpot_device_ms"]) < 200
    assert rows[0.2]["host_tokens"] > rows[0.2]["device_tokens"]
