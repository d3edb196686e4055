"""The benchmark's rows have the documented columns and errors within the promised bounds."""

import pytest

from apex_jax.host_offload import bench


def test_rows_name_what_was_measured():
    options = bench.AttentionBenchmark(
        shapes=((9, 3, 64),), cases=("ragged",), dtypes=("bfloat16",), repeats=1, pool_bytes=32 << 20
    )
    rows = list(bench.run(options))
    assert {row["implementation"] for row in rows} <= set(bench.IMPLEMENTATIONS)
    for row in rows:
        assert row["shape"] == "9/3/64"
        assert (row["rows"], row["length"]) == (16, 4096)
        assert row["gb_per_s"] > 0
        if row["implementation"] != "torch":
            assert row["max_error"] <= 2e-3
    lines: list[str] = []
    bench.print_rows(iter(rows), lines.append)
    assert len(lines) == 2 + len(rows)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="implementations has"):
        bench.AttentionBenchmark(implementations=("numpy",))


def test_what_is_not_installed_is_refused_where_it_is_named(monkeypatch):
    monkeypatch.setattr(bench.native_library, "load", lambda: None)
    with pytest.raises(ValueError, match="native cannot be measured, it is not installed here"):
        bench.AttentionBenchmark(implementations=("native", "jax"))
    assert bench.AttentionBenchmark().implementations is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8, 40), "head width 40 of 8/8/40 cannot be compared"),
        ((512, 512, 256), "case 8x2048 of 512/512/256 in float32 reads 17180 MB of KV, more than the 537 MB"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(shape, message):
    with pytest.raises(ValueError, match=message):
        bench.AttentionBenchmark(shapes=(shape,), cases=("8x2048",), dtypes=("float32",))
