"""Attention over the paged KV cache in plain XLA, for any device.

The cache of a layer is one array `[P, K, 2, S, H]`: P pages of S tokens, K heads, index 0 the keys and 1 the values.
Token t of a sequence lies in page `table[t // S]` at offset `t % S`. Letters: B rows, T query tokens, S page size or
cached length, N query heads, K key/value heads, G = N/K, H head width, W pages of a page table row.

Scores, softmax and sums are float32 whatever the type of the cache. With a half type, decode and prefill of the same
token should differ by no more than the order of their sums, so neither rounds in between: queries are scaled after the
product, and softmax weights are rounded to the cache's type only where an accelerator multiplies halves several times
faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

LARGE_BLOCK = 512
SMALL_BLOCK = 128
"""Tokens of keys that prefill attention takes at a time."""

MERGED_TOKENS = 256
"""Tokens of queries that prefill attention takes at a time where it knows that tiles continue each other."""

TOGETHER_TOKENS = 2048
"""The same on an accelerator, which wants more work at once."""

GATHERED_BYTES = 2**28
"""KV that decode attention copies at a time at most on a CPU; more rows or longer ones are taken in rounds."""

SCORE_BYTES = 2**25
"""Scores that it holds at a time on an accelerator, which copies no KV."""

SUMMED_TOKENS = 256
"""Tokens whose values an accelerator adds up in one piece of a row; the pieces' sums are added afterwards."""

MASKED = -1e30
"""Score of a key that a query may not see; finite, so that a row without any key gives zeros and not NaN."""


_Softmax = tuple[Array, Array, Array]
"""An online softmax under way: the largest score, the sum of weights, the weighted sum of values."""


def decode_attention(q: Array, kv: Array, table: Array, lengths: Array, *, window: int | None = None) -> Array:
    """Attention of one query token a row over its first `lengths` cached tokens, or the last `window` of those.

    Args:
        q: [B, N, H].
        kv: cache of one layer, [P, K, 2, S, H].
        table: int32 [B, W]; entries past a row's length are read and ignored, so they must be valid ids.
        lengths: int32 [B]; 0 gives a row of zeros.
        window: tokens that are attended to at most; None for all. Pages in front of them are not read.

    Returns:
        [B, N, H] in the dtype of q.
    """
    return lax.platform_dependent(
        *(q, kv, table, lengths),
        cpu=partial(decode_by_products, window=window),
        default=partial(decode_in_place, window=window),
    )


def decode_by_products(q: Array, kv: Array, table: Array, lengths: Array, *, window: int | None = None) -> Array:
    """Return what `decode_attention` does, by matrix products of copied pages: what a CPU is quickest at."""
    block = GATHERED_BYTES // (q.shape[0] * math.prod(kv.shape[1:]) * kv.dtype.itemsize)
    return _in_rounds(q, kv, table, lengths, window, attend=_attend_copied, block=max(1, block))


def decode_in_place(q: Array, kv: Array, table: Array, lengths: Array, *, window: int | None = None) -> Array:
    """Return what `decode_attention` does, in a form from which XLA's GPU compiler copies no KV."""
    block = SCORE_BYTES // (q.shape[0] * q.shape[1] * kv.shape[3] * 4)
    return _in_rounds(q, kv, table, lengths, window, attend=_attend_in_place, block=max(2, block))


def _in_rounds(
    q: Array,
    kv: Array,
    table: Array,
    lengths: Array,
    window: int | None,
    *,
    attend: Callable[[Array, Array, Array, Array, Array | None], _Softmax],
    block: int,
) -> Array:
    """Attend to so many pages of each row at a time."""
    rows, heads, width = q.shape
    grouped = q.reshape(rows, kv.shape[1], heads // kv.shape[1], width)
    starts = None
    if window is not None:
        table, starts, lengths = _pages_of_window(table, lengths, window, kv.shape[3])
    if table.shape[1] <= block:
        _, total, out = attend(grouped, kv, table, lengths, starts)
    else:
        table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % block)))

        def more(index: Array, state: _Softmax) -> _Softmax:
            ids = lax.dynamic_slice_in_dim(table, index * block, block, axis=1)
            before = index * block * kv.shape[3]
            begins = None if starts is None else starts - before
            return _merge(state, attend(grouped, kv, ids, lengths - before, begins))

        shape = grouped.shape[:3]
        state = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros(grouped.shape))
        _, total, out = lax.fori_loop(0, table.shape[1] // block, more, state)
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    return (out / total[..., None]).reshape(rows, heads, width).astype(q.dtype)


def _pages_of_window(table: Array, lengths: Array, window: int, page_size: int) -> tuple[Array, Array, Array]:
    """Return the part of table rows [B, W] that the last `window` tokens lie in, and where in it they begin and end."""
    starts = jnp.maximum(lengths - window, 0)
    pages = min(table.shape[1], (window + page_size - 2) // page_size + 1)
    first = jnp.minimum(starts // page_size, table.shape[1] - pages)
    table = jnp.take_along_axis(table, first[:, None] + jnp.arange(pages)[None, :], axis=1)
    return table, starts - first * page_size, lengths - first * page_size


def _attend_copied(grouped: Array, kv: Array, table: Array, lengths: Array, starts: Array | None) -> _Softmax:
    """Attend from [B, K, G, H] to the first `lengths` tokens of table rows [B, W], without those before `starts` where
    that is given; to none where a length is 0 or less.

    By matrix products of gathered pages.
    """
    pages = _read_pages(kv, table)
    scores = _scores("BKGH,BWKSH->BKGWS", grouped, pages[:, :, :, 0]) * grouped.shape[-1] ** -0.5
    visible = _visible(table.shape[1], kv.shape[3], lengths, starts)
    peak, weights = _weigh(scores, visible)
    # What other requests left there may be NaN, which a weight of zero does not silence.
    values = jnp.where(visible[:, :, None, :, None], pages[:, :, :, 1], jnp.zeros((), kv.dtype))
    return peak, weights.sum(axis=(3, 4)), _weighted_sum("BKGWS,BWKSH->BKGH", weights, values)


def _attend_in_place(grouped: Array, kv: Array, table: Array, lengths: Array, starts: Array | None) -> _Softmax:
    """Do what `_attend_copied` does, by sums of products of single heads.

    XLA's GPU compiler fuses the gather of pages into a sum of products and reads each page once, if keys and values are
    gathered by themselves and head by head, so that no axis changes its place. Of a sum over tokens it would first put
    the tokens last, by a transposed copy of all rows' values, as it does before matrix products; it does not for two
    sums in one reduction. The barrier keeps the pieces of a row apart: a long one is work for several processors.
    """
    rows, kv_heads, group, width = grouped.shape
    page_size = kv.shape[3]
    piece = min(max(1, SUMMED_TOKENS // page_size), max(1, table.shape[1] // 2))
    table = jnp.pad(table, ((0, 0), (0, max(2 * piece - table.shape[1], -table.shape[1] % piece))))
    pages = table.shape[1]
    halves = kv.reshape(-1, page_size, width)
    places = 2 * (table[:, None, :] * kv_heads + jnp.arange(kv_heads)[None, :, None])
    keys, values = halves[places].astype(jnp.float32), halves[places + 1].astype(jnp.float32)
    queries = grouped.astype(jnp.float32)[:, :, :, None, None, :]
    scores = (keys[:, :, None] * queries).sum(axis=-1) * width**-0.5
    visible = _visible(pages, page_size, lengths, starts)
    peak, weights = _weigh(scores, visible)
    weights = weights.reshape(rows, kv_heads, group, pages // piece, piece, page_size)
    values = values.reshape(rows, kv_heads, 1, pages // piece, piece, page_size, width)
    seen = visible.reshape(rows, 1, 1, pages // piece, piece, page_size, 1)
    # What other requests left there may be NaN, which a weight of zero does not silence.
    products = jnp.where(seen, weights[..., None] * values, 0.0)
    shares = jnp.broadcast_to(weights[..., None], products.shape)
    none = jnp.zeros((), jnp.float32)
    parts, totals = lax.reduce((products, shares), (none, none), lambda a, b: (a[0] + b[0], a[1] + b[1]), (4, 5))
    parts = lax.optimization_barrier(parts)
    return peak, totals[..., 0].sum(axis=3), parts.sum(axis=3)


def _visible(pages: int, page_size: int, lengths: Array, starts: Array | None) -> Array:
    """Return which tokens of a table row are among the first `lengths` and not before `starts`; bool [B, W, S]."""
    position = jnp.arange(pages * page_size).reshape(pages, page_size)
    visible = position[None] < lengths[:, None, None]
    return visible if starts is None else visible & (position[None] >= starts[:, None, None])


def _weigh(scores: Array, visible: Array) -> tuple[Array, Array]:
    """Return the largest visible score [B, K, G] and the softmax weights [B, K, G, W, S], not yet divided."""
    scores = jnp.where(visible[:, None, None], scores, MASKED)
    peak = scores.max(axis=(3, 4))
    return peak, jnp.where(visible[:, None, None], jnp.exp(scores - peak[..., None, None]), 0.0)


def _merge(before: _Softmax, more: _Softmax) -> _Softmax:
    """Return the online softmax over both, sums [...] and outputs [..., H]."""
    peak = jnp.maximum(before[0], more[0])
    old, new = jnp.exp(before[0] - peak), jnp.exp(more[0] - peak)
    return peak, before[1] * old + more[1] * new, before[2] * old[..., None] + more[2] * new[..., None]


def prefill_attention(
    q: Array, kv: Array, table: Array, starts: Array, *, one_request: bool, window: int | None = None
) -> Array:
    """Causal attention of tiles of prompt tokens over the cache, which holds the tiles' own keys and values already.

    A tile is a page of consecutive tokens of one request. A CPU walks the keys to the end of the tile, an accelerator
    all pages of the page table's rows: a loop whose end is data makes it wait for the host in each round, and the host
    for it.

    Args:
        q: [M, S, N, H], M tiles of S query tokens.
        kv: cache of one layer, [P, K, 2, S, H].
        table: int32 [M, W], the page table row of each tile's request; entries must be valid ids.
        starts: int32 [M], position of each tile's first token, a multiple of S.
        one_request: each tile continues the one before it; what follows the last may be padding.
        window: tokens that each attends to at most, its own included; None for all. Blocks of pages in front of them
            are not read.

    Returns:
        [M, S, N, H] in the dtype of q.
    """
    return lax.platform_dependent(
        *(q, kv, table, starts),
        cpu=partial(prefill_to_the_end, one_request=one_request, window=window),
        default=partial(prefill_over_the_table, one_request=one_request, window=window),
    )


def prefill_to_the_end(
    q: Array, kv: Array, table: Array, starts: Array, *, one_request: bool, window: int | None = None
) -> Array:
    """Return what `prefill_attention` does, walking keys in blocks with an online softmax up to each tile's end.

    The cost follows the true context and no shape depends on it: first come large blocks, which matrix products like,
    then small ones, which waste little at the end. Consecutive tiles of one request are taken several at a time for the
    same reason (a `cond` that finds out by itself costs more than it gains).
    """
    tiles, page_size = q.shape[:2]
    large, small = max(1, LARGE_BLOCK // page_size), max(1, SMALL_BLOCK // page_size)
    merged = math.gcd(tiles, max(1, MERGED_TOKENS // page_size)) if one_request else 1
    # Padding tiles reach past the end of the row; a slice that does would be moved and show other keys.
    width = table.shape[1] + (tiles if one_request else 0)
    table = jnp.pad(table, ((0, 0), (0, width - table.shape[1] + -width % small)))
    large = min(large, table.shape[1])

    def walk(attend: _AttendBlock, first: Array | int, pages: Array, state: _Softmax) -> _Softmax:
        # To blocks of which the padded row is a multiple, or the last one might reach beyond it.
        first = first // small * small
        whole = (pages - first) // large
        state = lax.fori_loop(0, whole, lambda i, s: attend(first + i * large, large, s), state)
        walked = first + whole * large
        rest = (pages - walked + small - 1) // small
        return lax.fori_loop(0, rest, lambda i, s: attend(walked + i * small, small, s), state)

    def attend(operands: tuple[Array, Array, Array, Array]) -> Array:
        return _attend_chunk(*operands, kv=kv, window=window, walk=walk)

    if not one_request:
        return lax.map(attend, (q, table, starts, starts + page_size))
    return _attend_merged(attend, q, table, starts, merged=merged)


def prefill_over_the_table(
    q: Array, kv: Array, table: Array, starts: Array, *, one_request: bool, window: int | None = None
) -> Array:
    """Return what `prefill_attention` does, walking all W pages, or as many as a window can lie in, whatever the
    contexts: no loop's end is data.

    Give it page tables that are cut to a few widths. Tiles are taken many at a time, to fill an accelerator.
    """
    tiles, page_size = q.shape[:2]
    block = min(max(1, LARGE_BLOCK // page_size), table.shape[1])
    together = max(1, TOGETHER_TOKENS // page_size)
    table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % block)))
    rounds = table.shape[1] // block

    def attend(operands: tuple[Array, Array, Array, Array]) -> Array:
        needed = rounds
        if window is not None:
            needed = min(rounds, (operands[0].shape[0] + window - 3) // (block * page_size) + 2)

        def walk(attend: _AttendBlock, first: Array | int, pages: Array, state: _Softmax) -> _Softmax:
            begin = 0 if window is None else jnp.minimum(first // block, rounds - needed)
            return lax.fori_loop(0, needed, lambda i, s: attend((begin + i) * block, block, s), state)

        return _attend_chunk(*operands, kv=kv, window=window, walk=walk)

    if not one_request:
        return lax.map(attend, (q, table, starts, starts + page_size), batch_size=together)
    return _attend_merged(attend, q, table, starts, merged=math.gcd(tiles, together))


_AttendBlock = Callable[[Array, int, _Softmax], _Softmax]
"""(first page, pages, state) -> state after those pages."""


def _attend_merged(
    attend: Callable[[tuple[Array, Array, Array, Array]], Array], q: Array, table: Array, starts: Array, *, merged: int
) -> Array:
    """Attend from the tiles of one request, so many at a time."""
    tiles, page_size = q.shape[:2]
    # Padding tiles start at 0, so they do not continue the others.
    real = (starts == starts[0] + jnp.arange(tiles) * page_size).astype(jnp.int32).sum()
    end = starts[0] + real * page_size
    chunks = q.reshape(tiles // merged, merged * page_size, *q.shape[2:])
    tokens = merged * page_size
    return jnp.concatenate(
        [attend((chunk, table[0], starts[0] + i * tokens, end)) for i, chunk in enumerate(chunks)]
    ).reshape(q.shape)


def _attend_chunk(
    q: Array,
    table: Array,
    start: Array,
    end: Array,
    *,
    kv: Array,
    window: int | None,
    walk: Callable[[_AttendBlock, Array | int, Array, _Softmax], _Softmax],
) -> Array:
    """Attend from consecutive tokens q [T, N, H] of one request, the first at position `start`, T whole pages.

    The request's pages reach to position `end`; later tokens are padding. `walk` goes over the pages in blocks, from
    the first that the window of some token reaches to the chunk's last.
    """
    tokens, heads, width = q.shape
    _, kv_heads, _, page_size, _ = kv.shape
    group = heads // kv_heads
    # [K, G*T, H]: one matrix product a key head serves its whole group of query heads.
    grouped = q.reshape(tokens, kv_heads, group, width).transpose(1, 2, 0, 3)
    grouped = grouped.reshape(kv_heads, group * tokens, width)
    query_position = jnp.tile(start + jnp.arange(tokens), group)[None, :, None]
    first = 0 if window is None else jnp.maximum(start - window + 1, 0)

    def attend(first_page: Array, pages: int, state: _Softmax) -> _Softmax:
        peak, total, out = state
        ids = lax.dynamic_slice_in_dim(table, first_page, pages)
        keys, values = _read_pages(kv, ids).transpose(2, 1, 0, 3, 4).reshape(2, kv_heads, pages * page_size, width)
        scores = _scores("KTH,KSH->KTS", grouped, keys) * width**-0.5
        position = first_page * page_size + jnp.arange(pages * page_size)
        visible, held = position[None, None, :] <= query_position, position < end
        if window is not None:
            visible &= position[None, None, :] > query_position - window
            held &= position >= first
        scores = jnp.where(visible, scores, MASKED)
        # What other requests left around those may be NaN, which a weight of zero does not silence.
        values = jnp.where(held[None, :, None], values, jnp.zeros((), kv.dtype))
        new_peak = jnp.maximum(peak, scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - new_peak)
        shrink = jnp.exp(peak - new_peak)
        update = _weighted_sum("KTS,KSH->KTH", weights, values)
        return new_peak, total * shrink + weights.sum(axis=-1, keepdims=True), out * shrink + update

    shape = (kv_heads, group * tokens)
    state = (jnp.full((*shape, 1), MASKED), jnp.zeros((*shape, 1)), jnp.zeros((*shape, width)))
    _, total, out = walk(attend, first // page_size, (start + tokens) // page_size, state)
    out = (out / total).reshape(kv_heads, group, tokens, width).transpose(2, 0, 1, 3)
    return out.reshape(q.shape).astype(q.dtype)


def _read_pages(kv: Array, ids: Array) -> Array:
    """Return pages [..., K, 2, S, H] of the cache, for ids [...]."""

    def at_once(kv: Array, ids: Array) -> Array:
        # XLA computes bfloat16 gathers in float32 there, and in a loop would convert the whole cache ahead of it.
        kv, ids = lax.optimization_barrier((kv, ids))
        return kv[ids]

    return lax.platform_dependent(kv, ids, cpu=at_once, default=lambda kv, ids: kv[ids])


def _scores(equation: str, q: Array, keys: Array) -> Array:
    """Multiply queries by keys; float32, exact but for the order of sums."""
    return jnp.einsum(equation, q, keys, precision=_precision(keys), preferred_element_type=jnp.float32)


def _weighted_sum(equation: str, weights: Array, values: Array) -> Array:
    """Sum values by float32 softmax weights; float32."""

    def exact(weights: Array, values: Array) -> Array:
        return jnp.einsum(equation, weights, values.astype(jnp.float32), precision=lax.Precision.HIGHEST)

    def rounded(weights: Array, values: Array) -> Array:
        return jnp.einsum(equation, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)

    if values.dtype == jnp.float32:
        return exact(weights, values)
    return lax.platform_dependent(weights, values, cpu=exact, default=rounded)


def _precision(factor: Array) -> lax.Precision | None:
    """Ask for full float32 products of float32 factors: accelerators would otherwise round them to fewer bits."""
    return lax.Precision.HIGHEST if factor.dtype == jnp.float32 else None
