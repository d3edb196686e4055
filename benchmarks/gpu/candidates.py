"""Ways to attend over the paged device cache, to be compared on a GPU: decode attention, one query token a row.

Each is a function (q [B, N, H], kv [P, K, 2, S, H], table [B, W], lengths [B]) -> [B, N, H] like
`apex_jax.execution.paged_attention.decode_attention`, which is the first of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from apex_jax.execution.paged_attention import MASKED, decode_attention, decode_by_products

Attention = Callable[[Array, Array, Array, Array], Array]

SMALLEST_PRODUCT = 16
"""Rows that a matrix product of a Triton kernel has at least."""

SPLIT_PAGES = 4
"""Pages that one program of the kernel walks: a few rows alone must occupy a whole GPU."""


def by_head(q: Array, kv: Array, table: Array, lengths: Array) -> Array:
    """Gather pages head by head, so that they lie as the matrix products take them, without a transposition."""
    grouped, visible = _grouped(q, kv), _visible(kv, table, lengths)
    keys, values = _tiles(kv, table, 0), _tiles(kv, table, 1)
    scores = jnp.einsum("BKGH,BKWSH->BKGWS", grouped, keys, preferred_element_type=jnp.float32)
    weights, total = _softmax(scores, visible, q.shape[-1])
    values = jnp.where(visible[:, None, :, :, None], values, jnp.zeros((), kv.dtype))
    out = jnp.einsum("BKGWS,BKWSH->BKGH", weights.astype(kv.dtype), values, preferred_element_type=jnp.float32)
    return (out / total[..., None]).reshape(q.shape).astype(q.dtype)


def library(q: Array, kv: Array, table: Array, lengths: Array, *, implementation: str) -> Array:
    """Gather to contiguous keys and values and call JAX's own attention."""
    rows, _, width = q.shape
    pages = kv[table].transpose(3, 0, 1, 4, 2, 5)
    keys, values = pages.reshape(2, rows, -1, kv.shape[1], width)
    visible = jnp.arange(keys.shape[1])[None, :] < lengths[:, None]
    values = jnp.where(visible[:, :, None, None], values, jnp.zeros((), kv.dtype))
    out = jax.nn.dot_product_attention(
        q[:, None], keys, values, key_value_seq_lengths=lengths, implementation=implementation
    )
    return out[:, 0]


def kernel(q: Array, kv: Array, table: Array, lengths: Array, *, interpret: bool = False) -> Array:
    """A Pallas kernel for Triton: each program walks a few pages of one row and one key head; the parts are merged.

    JAX 0.11 still has Pallas for Triton, and says that it will go: what it gains here has to be written another way
    before the engine may rely on it.
    """
    rows, heads, width = q.shape
    _, kv_heads, _, page_size, _ = kv.shape
    group = heads // kv_heads
    padded = max(SMALLEST_PRODUCT, 1 << (group - 1).bit_length())
    grouped = jnp.pad(_grouped(q, kv), ((0, 0), (0, 0), (0, padded - group), (0, 0)))
    splits = -(-table.shape[1] // SPLIT_PAGES)
    table = jnp.pad(table, ((0, 0), (0, splits * SPLIT_PAGES - table.shape[1])))
    parts = (rows, kv_heads, splits, padded)
    out, peak, total = pl.pallas_call(
        functools.partial(_walk, page_size=page_size, scale=width**-0.5),
        grid=(rows, kv_heads, splits),
        out_shape=(
            jax.ShapeDtypeStruct((*parts, width), jnp.float32),
            jax.ShapeDtypeStruct(parts, jnp.float32),
            jax.ShapeDtypeStruct(parts, jnp.float32),
        ),
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="paged_decode_attention",
    )(grouped, kv, table, lengths)
    share = jnp.exp(peak - peak.max(axis=2, keepdims=True))
    total = jnp.maximum((total * share).sum(axis=2), jnp.finfo(jnp.float32).tiny)
    merged = (out * share[..., None]).sum(axis=2) / total[..., None]
    return merged[:, :, :group].reshape(q.shape).astype(q.dtype)


def _walk(q_ref, kv_ref, table_ref, lengths_ref, out_ref, peak_ref, total_ref, *, page_size, scale):
    row, head, split = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    length = lengths_ref[row]
    q = q_ref[row, head]
    offsets = jnp.arange(page_size)

    def body(index, state):
        peak, total, out = state
        page = table_ref[row, index]
        position = index * page_size + offsets
        scores = _product(q, kv_ref[page, head, 0].T) * scale
        scores = jnp.where(position[None, :] < length, scores, MASKED)
        values = kv_ref[page, head, 1]
        values = jnp.where(position[:, None] < length, values, jnp.zeros((), values.dtype))
        new_peak = jnp.maximum(peak, scores.max(axis=1))
        weights = jnp.exp(scores - new_peak[:, None])
        shrink = jnp.exp(peak - new_peak)
        update = _product(weights.astype(values.dtype), values)
        return new_peak, total * shrink + weights.sum(axis=1), out * shrink[:, None] + update

    first = split * SPLIT_PAGES
    last = jnp.minimum(first + SPLIT_PAGES, (length + page_size - 1) // page_size)
    padded, width = q.shape
    state = (jnp.full((padded,), MASKED), jnp.zeros((padded,)), jnp.zeros((padded, width)))
    peak, total, out = lax.fori_loop(first, jnp.maximum(first, last), body, state)
    out_ref[row, head, split] = out
    peak_ref[row, head, split] = peak
    total_ref[row, head, split] = total


def _product(a: Array, b: Array) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _grouped(q: Array, kv: Array) -> Array:
    return q.reshape(q.shape[0], kv.shape[1], -1, q.shape[2])


def _visible(kv: Array, table: Array, lengths: Array) -> Array:
    """Which tokens a row sees, [B, W, S]."""
    page_size = kv.shape[3]
    position = jnp.arange(table.shape[1] * page_size).reshape(1, table.shape[1], page_size)
    return position < lengths[:, None, None]


def _tiles(kv: Array, table: Array, part: int) -> Array:
    """Gather keys (0) or values (1), [B, K, W, S, H]."""
    pages, kv_heads, _, page_size, width = kv.shape
    tiles = kv.reshape(pages * kv_heads * 2, page_size, width)
    heads = jnp.arange(kv_heads, dtype=table.dtype)[None, :, None]
    return tiles[(table[:, None, :] * kv_heads + heads) * 2 + part]


def _softmax(scores: Array, visible: Array, width: int) -> tuple[Array, Array]:
    """Return unnormalised weights [B, K, G, W, S] and their sums."""
    seen = visible[:, None, None]
    scores = jnp.where(seen, scores * width**-0.5, MASKED)
    weights = jnp.where(seen, jnp.exp(scores - scores.max(axis=(3, 4), keepdims=True)), 0.0)
    return weights, jnp.maximum(weights.sum(axis=(3, 4)), jnp.finfo(jnp.float32).tiny)


CANDIDATES: dict[str, Attention] = {
    "xla, no copy (in use)": decode_attention,
    "xla, pages gathered as they lie": decode_by_products,
    "xla, gathered head by head": by_head,
    "gathered + dot_product_attention, xla": functools.partial(library, implementation="xla"),
    "gathered + dot_product_attention, cudnn": functools.partial(library, implementation="cudnn"),
    "pallas triton kernel over pages": kernel,
}
