"""`apex-jax bench`: that the command measures what it is told to; the measurements have tests of their own."""

import json

import pytest

ONE = ("bench", "attention", "--implementation=jax", "--shape=4/2/32", "--dtype=float32", "--case=8x2048")


def test_attention_rows(command):
    status, out, _ = command(*ONE, "--repeats=1", "--json")
    (row,) = json.loads(out)
    assert status == 0
    assert {"stream_gb_per_s", "fraction_of_stream", "gb_per_s"} <= row.keys()
    assert (row["implementation"], row["shape"], row["dtype"]) == ("jax", "4/2/32", "float32")
    assert (row["rows"], row["length"]) == (8, 2048)
    assert 0 <= row["max_error"] < 1e-5


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
        (["bench", "attention", "--dtype=int8"], "dtypes has ['int8']"),
        (["bench", "attention", "--repeats=0"], "repeats is 0"),
    ],
)
def test_mistakes(command, arguments, message):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
