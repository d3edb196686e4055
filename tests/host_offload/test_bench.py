"""The benchmark's rows have the documented columns and errors within the promised bounds."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.bench import host_attention as bench


def test_rows_name_what_was_measured():
    options = bench.AttentionBenchmark(
        shapes=((9, 3, 64),), cases=("ragged",), dtypes=("bfloat16",), repeats=1, pool_bytes=32 << 20
    )
    rows = list(bench.run(options))
    assert bench.row_names(options) == [f"9/3/64 bfloat16 ragged {row['implementation']}" for row in rows]
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


@pytest.mark.parametrize("implementation", ["native", "jax"])
def test_the_smallest_call_is_a_row_with_a_time(implementation):
    if implementation == "native" and bench.native_library.load() is None:
        pytest.skip("apex_jax was installed without a compiler")
    options = bench.AttentionBenchmark(
        implementations=(implementation,),
        shapes=((8, 2, 64),),
        cases=("1x64",),
        dtypes=("float32",),
        repeats=1,
        pool_bytes=1 << 20,
    )
    (row,) = bench.run(options)
    assert (row["implementation"], row["shape"], row["dtype"]) == (implementation, "8/2/64", "float32")
    assert (row["rows"], row["length"]) == (1, 64)
    # 64 tokens of 2 keys and 2 values of 64 float32.
    assert row["gb_per_s"] == pytest.approx(64 * 2 * 2 * 64 * 4 / row["latency_us"] / 1e3)
    assert row["fraction_of_stream"] is None
    assert bench.row_names(options) == [f"8/2/64 float32 1x64 {implementation}"]
    assert row["max_error"] <= 2e-6
    lines: list[str] = []
    bench.print_rows(iter([row]), lines.append)
    assert lines[-1].endswith(f"{row['latency_us']:.1f} us")


def test_every_case_has_the_smallest_call_among_them():
    assert "1x64" in bench.AttentionBenchmark().cases


def test_streaming_read_reads_every_word():
    if bench.native_library.load() is None:
        pytest.skip("apex_jax was installed without a compiler")
    words = np.random.default_rng(0).integers(0, 2**64, (3 << 20) // 8 + 96, np.uint64)
    low, high = np.asarray(bench.stream_reader()(jnp.asarray(words.view(np.uint32)))).tolist()
    assert low + (high << 32) == np.bitwise_xor.reduce(words)


def test_streaming_read_without_the_native_library_reads_everything_with_all_cores(monkeypatch):
    threads = set()

    def largest(piece):
        threads.add(threading.get_ident())
        both.wait(timeout=10)
        return piece.max()

    data = np.zeros(1001, np.uint8)
    data[-1] = 7
    both = threading.Barrier(2)
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(bench, "largest", largest)
    assert bench.read_with_numpy(data) == 7
    assert len(threads) == 2
    monkeypatch.undo()
    monkeypatch.setattr(bench.native_library, "load", lambda: None)
    assert bench.stream_rate(jnp.zeros((1, 2, 2, 64, 64), jnp.bfloat16)) > 0


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
