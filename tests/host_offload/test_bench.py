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
