"""The benchmark of page moves measures every move and refuses what it cannot do."""

import pytest

from apex_jax.bench import host_pages as bench_pages


def test_every_move_is_measured():
    options = bench_pages.PagesBenchmark(kv_heads=2, width=64, pages=4, repeats=1, pool_bytes=4 << 20)
    rows = list(bench_pages.run(options))
    assert [row["operation"] for row in rows] == ["read", "read into given memory", "write"]
    for row in rows:
        assert row["page_bytes"] == 2 * 2 * 64 * 64 * 2
        assert row["gb_per_s"] > 0
        assert row["stream_gb_per_s"] > 0


def test_more_pages_than_the_pool_has_are_refused():
    with pytest.raises(ValueError, match="pages is 0"):
        bench_pages.PagesBenchmark(pages=0)
    with pytest.raises(ValueError, match="pages is 33, the pool has 32"):
        bench_pages.PagesBenchmark(kv_heads=2, width=64, pages=33, pool_bytes=1 << 20)
