"""`apex-jax bench`: that the command measures what it is told to; the measurements have tests of their own."""

import json
import os
import signal

import pytest

from apex_jax.bench import host_attention as bench

ONE = ("bench", "attention", "--implementation=jax", "--shape=4/2/32", "--dtype=float32", "--case=8x2048")


def test_attention_rows(command):
    status, out, _ = command(*ONE, "--repeats=1", "--json")
    (row,) = json.loads(out)
    assert status == 0
    assert {"stream_gb_per_s", "fraction_of_stream", "gb_per_s"} <= row.keys()
    assert (row["implementation"], row["shape"], row["dtype"]) == ("jax", "4/2/32", "float32")
    assert (row["rows"], row["length"]) == (8, 2048)
    assert 0 <= row["max_error"] < 1e-5


def test_repeated_options_are_measured_once(command):
    status, out, _ = command(*ONE, "--case=8x2048", "--dtype=float32", "--repeats=1", "--json")
    assert status == 0
    assert len(json.loads(out)) == 1


def test_an_interrupted_measurement_keeps_what_is_finished(command, monkeypatch):
    measure = bench.measure_smallest

    def interrupted(*arguments):
        monkeypatch.setattr(bench, "measure_smallest", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        return measure(*arguments)

    monkeypatch.setattr(bench, "measure_smallest", interrupted)
    arguments = (*ONE[:-1], "--case=1x64", "--dtype=float16", "--repeats=1", "--json")
    status, out, err = command(*arguments)
    assert (status, err) == (130, "\napex-jax: interrupted\n")
    assert [row["dtype"] for row in json.loads(out)] == ["float32"]


def test_attention_table(command):
    status, out, _ = command(*ONE, "--repeats=1")
    assert status == 0
    assert ["4/2/32", "float32", "8x2048", "jax"] in [line.split()[:4] for line in out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "the following arguments are required: BENCHMARK"),
        (["bench", "attention", "--shape=8/3/64"], "8 query heads are no multiple of 3"),
        (["bench", "attention", "--shape=8x3"], "'8x3' is not a shape"),
        (["bench", "attention", "--dtype=int8"], "--dtype is 'int8', it must be one of bfloat16, float32, float16"),
        (["bench", "attention", "--implementation=numpy"], "--implementation is 'numpy'"),
        (["bench", "attention", "--case=9x9"], "--case is '9x9', it must be one of 8x2048, 64x256"),
        (["bench", "attention", "--repeats=0"], "argument --repeats: '0' is not a whole number of at least 1"),
        (["bench", "attention", "--threads=two"], "argument --threads: 'two'"),
        (["bench", "pages", "--pages=0"], "argument --pages: '0'"),
        (["bench", "pages", "--pages=100000"], "--pages is 100000, it must be at most 2048"),
    ],
)
def test_mistakes(command, arguments, message):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
