"""The device's attention over pages against float64 numpy; cells that belong to nobody hold NaN."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.execution.page_writes import write_tiles, write_tokens
from apex_jax.execution.paged_attention import (
    decode_by_products,
    decode_in_place,
    prefill_attention,
    prefill_over_the_table,
    prefill_to_the_end,
)

pytestmark = pytest.mark.gpu

HEADS = {"mha": (4, 4), "gqa": (6, 2), "mqa": (4, 1)}
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2, "float16": 2e-3}
WIDTH = 16

DECODES = {"by_products": decode_by_products, "in_place": decode_in_place}
decodes = pytest.mark.parametrize("decode", DECODES)
WALKS = {
    name: jax.jit(walk, static_argnames=("one_request", "window"))
    for name, walk in (("to_the_end", prefill_to_the_end), ("over_the_table", prefill_over_the_table))
}
walks = pytest.mark.parametrize("walk", WALKS)


def attention(q, k, v):
    """One query [N, H] over keys and values [S, K, H], in float64."""
    group = q.shape[0] // k.shape[1]
    k, v = (np.repeat(a.astype(np.float64), group, axis=1) for a in (k, v))
    scores = np.einsum("NH,SNH->NS", q.astype(np.float64), k) / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("NS,SNH->NH", weights / weights.sum(-1, keepdims=True), v)


class Cache:
    """Sequences of random keys and values, scattered over the pages of an array that is NaN elsewhere."""

    def __init__(self, lengths, *, page_size, kv_heads, dtype, spare=3):
        self.rng = np.random.default_rng(zlib.crc32(repr((lengths, page_size, kv_heads)).encode()))
        self.page_size, self.dtype = page_size, jnp.dtype(dtype)
        self.width = -(-max(lengths) // page_size) + 1
        counts = [-(-length // page_size) for length in lengths]
        ids = iter(self.rng.permutation(sum(counts) + spare))
        self.num_pages = sum(counts) + spare
        self.unused = int(next(ids))
        self.table = np.full((len(lengths), self.width), self.unused, np.int32)
        self.kv = np.full((self.num_pages, kv_heads, 2, page_size, WIDTH), np.nan, self.dtype)
        self.k, self.v = [], []
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            self.table[row, :count] = [next(ids) for _ in range(count)]
            self.k.append(self.random(length, kv_heads))
            self.v.append(self.random(length, kv_heads))
            for t in range(length):
                page = self.table[row, t // page_size]
                self.kv[page, :, 0, t % page_size] = self.k[-1][t]
                self.kv[page, :, 1, t % page_size] = self.v[-1][t]

    def give_back_before(self, row, position):
        """Let somebody else have the pages of a row that lie before a position."""
        gone = self.table[row, : position // self.page_size]
        self.kv[gone] = np.nan
        gone[:] = self.unused

    def random(self, *shape):
        return self.rng.normal(size=(*shape, WIDTH)).astype(self.dtype)


@pytest.mark.parametrize(
    ("heads", "dtype", "page_size"),
    [
        ("gqa", "float32", 16),
        ("gqa", "float32", 32),
        ("mqa", "float32", 64),
        ("mha", "float32", 128),
        ("gqa", "bfloat16", 64),
        ("mha", "float16", 16),
        ("mqa", "float16", 128),
    ],
)
@decodes
def test_decode(decode, heads, dtype, page_size):
    check_decode(decode, *HEADS[heads], dtype, page_size)


@decodes
def test_decode_of_rows_of_one_page_and_of_many_pieces(decode):
    check_decode(decode, 6, 2, "float32", 16, lengths=(3, 16))
    check_decode(decode, 6, 2, "float32", 16, lengths=(700, 5, 0, 255))


@pytest.mark.parametrize("pages", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@decodes
def test_decode_in_rounds(decode, pages, dtype, monkeypatch):
    """Only so many pages of each row at a time; the last round may be short, and rows may end before it."""
    copied, scores = 5 * 2 * 2 * 16 * WIDTH * jnp.dtype(dtype).itemsize, 5 * 6 * 16 * 4
    monkeypatch.setattr("apex_jax.execution.paged_attention.GATHERED_BYTES", (pages + 1) * copied - 1)
    monkeypatch.setattr("apex_jax.execution.paged_attention.SCORE_BYTES", (pages + 1) * scores - 1)
    check_decode(decode, 6, 2, dtype, 16)


@pytest.mark.parametrize("window", [1, 15, 16, 17, 24, 100, 2000])
@pytest.mark.parametrize(("dtype", "page_size"), [("float32", 16), ("bfloat16", 32)])
@decodes
def test_decode_in_a_window(decode, dtype, page_size, window):
    check_decode(decode, 6, 2, dtype, page_size, lengths=(1, 16, 130, 0, 97, window, window + 1), window=window)


@decodes
def test_decode_in_a_window_in_rounds(decode, monkeypatch):
    monkeypatch.setattr("apex_jax.execution.paged_attention.GATHERED_BYTES", 1)
    monkeypatch.setattr("apex_jax.execution.paged_attention.SCORE_BYTES", 1)
    check_decode(decode, 6, 2, "float32", 16, lengths=(130, 7, 0, 96), window=60)


def check_decode(decode, heads, kv_heads, dtype, page_size, lengths=None, window=None):
    lengths = lengths or (1, page_size, page_size + 1, 3 * page_size - 5, 0)
    cache = Cache(lengths, page_size=page_size, kv_heads=kv_heads, dtype=dtype)
    q = cache.random(len(lengths), heads)
    # A function of its own, since what a test has changed is no part of what compiled programs are found by.
    compiled = jax.jit(lambda *operands: DECODES[decode](*operands, window=window))
    starts = [0 if window is None else max(0, length - window) for length in lengths]
    for row, start in enumerate(starts):
        cache.give_back_before(row, start)
    found = np.asarray(compiled(q, cache.kv, cache.table, np.array(lengths, np.int32)))
    assert found.dtype == cache.dtype
    for row, length in enumerate(lengths):
        k, v = cache.k[row][starts[row] :], cache.v[row][starts[row] :]
        expected = attention(q[row], k, v) if length else np.zeros((heads, WIDTH))
        np.testing.assert_allclose(found[row].astype(np.float64), expected, atol=TOLERANCE[dtype], rtol=0)


def tiles_of(cache, row, start, end):
    """(row, start) of the tiles of a chunk."""
    return [(row, first) for first in range(start, end, cache.page_size)]


def check_prefill(walk, cache, heads, tiles, *, one_request, window=None):
    """`tiles` are (row of the cache, start), or None for padding."""
    size = cache.page_size
    q = cache.random(len(tiles), size, heads)
    table = np.zeros((len(tiles), cache.width), np.int32)
    starts = np.zeros(len(tiles), np.int32)
    for i, tile in enumerate(tiles):
        if tile is not None:
            table[i], starts[i] = cache.table[tile[0]], tile[1]
    found = np.asarray(WALKS[walk](q, cache.kv, table, starts, one_request=one_request, window=window))
    assert found.dtype == cache.dtype
    for i, tile in enumerate(tiles):
        if tile is None:
            continue
        row, start = tile
        k, v = cache.k[row], cache.v[row]
        for offset in range(0, min(size, len(k) - start), 7):
            end = start + offset + 1
            begin = 0 if window is None else max(0, end - window)
            expected = attention(q[i, offset], k[begin:end], v[begin:end])
            np.testing.assert_allclose(
                found[i, offset].astype(np.float64), expected, atol=TOLERANCE[cache.dtype.name], rtol=0
            )


@walks
@pytest.mark.parametrize(
    ("heads", "dtype", "page_size"),
    [
        ("gqa", "float32", 16),
        ("mha", "float32", 64),
        ("mqa", "float32", 128),
        ("mqa", "bfloat16", 16),
        ("gqa", "float16", 32),
    ],
)
def test_prefill_of_several_requests_and_padding(walk, heads, dtype, page_size):
    """The prompts fill their pages: what a prefill has padded a page with is the request's own and finite."""
    heads, kv_heads = HEADS[heads]
    lengths = (2 * page_size, 640 + 2 * page_size, page_size)
    cache = Cache(lengths, page_size=page_size, kv_heads=kv_heads, dtype=dtype)
    tiles = [
        *tiles_of(cache, 0, page_size, 2 * page_size),
        *tiles_of(cache, 1, 640, 640 + 2 * page_size),
        *tiles_of(cache, 2, 0, page_size),
    ]
    check_prefill(walk, cache, heads, [*tiles, None], one_request=False)


@walks
@pytest.mark.parametrize("start", [0, 640])
@pytest.mark.parametrize(
    ("page_size", "count", "bucket"), [(16, 1, 1), (16, 5, 8), (32, 8, 8), (64, 3, 4), (128, 2, 4)]
)
def test_prefill_of_one_request(walk, page_size, start, count, bucket):
    """Tiles are taken together, and padding tiles with them; start may lie within or past a large block of keys."""
    end = start + count * page_size
    cache = Cache((end,), page_size=page_size, kv_heads=2, dtype="float32")
    tiles = tiles_of(cache, 0, start, end)
    check_prefill(walk, cache, 4, tiles + [None] * (bucket - count), one_request=True)


@walks
@pytest.mark.parametrize("window", [1, 16, 24, 130, 600, 2000])
def test_prefill_in_a_window(walk, window):
    """Of one request, and of one page of each of several."""
    cache = Cache((752, 640, 32), page_size=16, kv_heads=2, dtype="float32")
    for row, start in ((0, 672), (1, 624)):
        cache.give_back_before(row, max(0, start - window + 1))
    check_prefill(walk, cache, 4, [*tiles_of(cache, 0, 672, 752), *[None] * 3], one_request=True, window=window)
    tiles = [*tiles_of(cache, 0, 672, 688), *tiles_of(cache, 1, 624, 640), *tiles_of(cache, 2, 0, 32), None]
    check_prefill(walk, cache, 4, tiles, one_request=False, window=window)


def test_prefill_of_more_tiles_than_are_taken_together(monkeypatch):
    monkeypatch.setattr("apex_jax.execution.paged_attention.TOGETHER_TOKENS", 32)
    cache = Cache((80, 48), page_size=16, kv_heads=2, dtype="float32")
    monkeypatch.setitem(WALKS, "few", jax.jit(prefill_over_the_table, static_argnames=("one_request", "window")))
    check_prefill("few", cache, 4, tiles_of(cache, 0, 16, 80), one_request=True)
    check_prefill("few", cache, 4, [*tiles_of(cache, 0, 16, 80), *tiles_of(cache, 1, 0, 48)], one_request=False)


@pytest.mark.parametrize("one_request", [True, False])
def test_no_loop_of_an_accelerator_ends_where_data_says(one_request):
    """It would wait for the host in each round."""
    shapes = ((4, 16, 4, WIDTH), (8, 2, 2, 16, WIDTH))
    q, kv = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    table, starts = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((4, 40), (4,)))
    traced = jax.jit(prefill_attention, static_argnames="one_request").trace(
        q, kv, table, starts, one_request=one_request
    )

    def bounds(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.while") > 0
        return re.findall(
            r"cond \{\s*(?:%c\S* = stablehlo\.constant .*\s*)*%\d+ = stablehlo\.compare +LT, %\S+, %(\w+)", text
        )

    assert all(bound.startswith("c") for bound in bounds("cuda"))
    assert not all(bound.startswith("c") for bound in bounds("cpu"))


def test_writes_go_to_their_places_and_nowhere_else():
    cache = Cache((5, 16, 33), page_size=16, kv_heads=2, dtype="float32")
    lengths = np.array([6, 0, 34, 17], np.int32)  # the second row is padding
    table = cache.table[[0, 1, 2, 1]]
    k, v = cache.random(4, 2), cache.random(4, 2)
    expected = cache.kv.copy()
    for row, position in ((0, 5), (2, 33), (3, 16)):
        page = table[row, position // 16]
        expected[page, :, 0, position % 16] = k[row]
        expected[page, :, 1, position % 16] = v[row]
    found = jax.jit(write_tokens)(cache.kv, table, lengths, k, v)
    np.testing.assert_array_equal(np.asarray(found), expected)

    k, v = cache.random(3, 16, 2), cache.random(3, 16, 2)
    pages = np.array([4, cache.num_pages, 1], np.int32)  # the second tile is padding
    for tile in (0, 2):
        expected[pages[tile], :, 0] = k[tile].transpose(1, 0, 2)
        expected[pages[tile], :, 1] = v[tile].transpose(1, 0, 2)
    found = jax.jit(write_tiles)(found, pages, k, v)
    np.testing.assert_array_equal(np.asarray(found), expected)
