"""Decode attention over paged KV in plain JAX: the reference of the native kernel, and what runs without it."""

import math

import jax
import jax.numpy as jnp

from . import plain_writes


def append(kv: jax.Array, page_table: jax.Array, lengths: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Return `kv` [P, K, 2, S, H] with each row's last token written.

    Rows of length 0, of a length beyond the page table or with a page id out of range are left out.

    Args:
        kv: pages [P, K, 2, S, H].
        page_table: page ids, int32 [B, W].
        lengths: tokens of each row including the new one, int32 [B].
        key: new keys [B, K, H].
        value: new values [B, K, H].
    """
    page_size = kv.shape[3]
    token = jnp.maximum(lengths - 1, 0)
    index = jnp.minimum(token // page_size, page_table.shape[1] - 1)
    page = jnp.take_along_axis(page_table, index[:, None], axis=1)[:, 0]
    usable = (lengths > 0) & (lengths <= page_table.shape[1] * page_size) & (page >= 0)
    page = jnp.where(usable, page, kv.shape[0])  # one past the end: dropped
    return plain_writes.set_tokens(kv, page, token % page_size, jnp.stack([key, value], axis=2))


def attend(
    q: jax.Array,
    kv: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    scale: float,
    sliding_window: int | None,
    logit_softcap: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Return attention output float32 [B, N, H] and log-sum-exp float32 [B, N].

    Gathers B * W pages, whatever the lengths and the window, and holds them in the type of `kv` and in float32: on a
    CPU B * W * K * 2 * S * H numbers at 8 bytes with a float32 cache, at 6 with a half type, besides scores
    [B, N, W * S]. Rows whose length exceeds the page table or that name a page out of range are NaN (the
    native kernel raises instead, which traced code cannot).
    """
    rows, heads, width = q.shape
    pages, kv_heads, _, page_size, _ = kv.shape
    capacity = page_table.shape[1] * page_size
    position = jnp.arange(capacity, dtype=jnp.int32)[None, :]
    first = jnp.zeros_like(lengths) if sliding_window is None else jnp.maximum(lengths - sliding_window, 0)
    visible = (position >= first[:, None]) & (position < lengths[:, None])  # [B, S]
    visible_page = visible.reshape(rows, -1, page_size).any(axis=2)
    wrong_page = ((page_table < 0) | (page_table >= pages)) & visible_page
    wrong = wrong_page.any(axis=1) | (lengths < 0) | (lengths > capacity)

    gathered = kv.at[page_table].get(mode="clip")  # [B, W, K, 2, S, H]
    gathered = gathered.transpose(3, 0, 2, 1, 4, 5).reshape(2, rows, kv_heads, capacity, width)
    # What lies outside a row's tokens may be NaN, and zero times NaN is NaN.
    gathered = jnp.where(visible[None, :, None, :, None], gathered, 0).astype(jnp.float32)
    grouped = q.astype(jnp.float32).reshape(rows, kv_heads, heads // kv_heads, width)
    precision = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("BKGH,BKSH->BKGS", grouped, gathered[0], precision=precision) * scale
    if logit_softcap is not None:
        scores = logit_softcap * jnp.tanh(scores / logit_softcap)
    scores = jnp.where(visible[:, None, None, :], scores, -jnp.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-jnp.inf)
    top = jnp.where(top == -jnp.inf, 0.0, top)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("BKGS,BKSH->BKGH", weights, gathered[1], precision=precision) / total
    lse = jnp.log(total) + top

    empty = (lengths == 0)[:, None, None]
    out = jnp.where(empty, 0.0, out.reshape(rows, heads, width))
    lse = jnp.where(empty[:, :, 0], -jnp.inf, lse.reshape(rows, heads))
    return jnp.where(wrong[:, None, None], math.nan, out), jnp.where(wrong[:, None], math.nan, lse)
