"""Random paged attention problems and their answer in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.host_offload import native_library

needs_native = pytest.mark.skipif(native_library.load() is None, reason="apex_jax was installed without a compiler")


@dataclasses.dataclass
class Problem:
    q: np.ndarray  # [B, N, H]
    kv: np.ndarray  # [P, K, 2, S, H]
    table: np.ndarray  # [B, W]
    lengths: np.ndarray  # [B]
    key: np.ndarray  # [B, K, H]
    value: np.ndarray  # [B, K, H]

    def arguments(self):
        return tuple(map(jnp.asarray, (self.q, self.kv, self.table, self.lengths)))

    def new_kv(self):
        return jnp.asarray(self.key), jnp.asarray(self.value)

    def appended(self) -> np.ndarray:
        kv = self.kv.copy()
        size = kv.shape[3]
        for row, length in enumerate(self.lengths):
            if length > 0:
                page, offset = self.table[row, (length - 1) // size], (length - 1) % size
                kv[page, :, 0, offset], kv[page, :, 1, offset] = self.key[row], self.value[row]
        return kv


def make(*, lengths, heads, kv_heads, width, page_size=16, q_type="float32", kv_type="float32", seed=0) -> Problem:
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths, np.int32)
    row_pages = max(1, -(-int(lengths.max(initial=0)) // page_size))
    pages = len(lengths) * row_pages + 1
    table = rng.permutation(pages)[: len(lengths) * row_pages].reshape(-1, row_pages).astype(np.int32)

    def normal(shape, dtype):
        return np.array(jnp.asarray(rng.standard_normal(shape), dtype))

    return Problem(
        q=normal((len(lengths), heads, width), q_type),
        kv=normal((pages, kv_heads, 2, page_size, width), kv_type),
        table=table,
        lengths=lengths,
        key=normal((len(lengths), kv_heads, width), kv_type),
        value=normal((len(lengths), kv_heads, width), kv_type),
    )


def exact(problem: Problem, kv: np.ndarray, *, scale=None, window=None, softcap=None):
    """Return output [B, N, H] and log-sum-exp [B, N] in float64, one row and head at a time."""
    rows, heads, width = problem.q.shape
    group, size = heads // kv.shape[1], kv.shape[3]
    out, lse = np.zeros((rows, heads, width)), np.full((rows, heads), -np.inf)
    for row, length in enumerate(problem.lengths):
        if length == 0:
            continue
        first = max(0, length - window) if window else 0
        tokens = np.arange(first, length)
        dense = kv[problem.table[row, tokens // size], :, :, tokens % size].astype(np.float64)  # [S, K, 2, H]
        for head in range(heads):
            scores = dense[:, head // group, 0] @ problem.q[row, head].astype(np.float64)
            scores = scores * (width**-0.5 if scale is None else scale)
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ dense[:, head // group, 1] / weights.sum()
            lse[row, head] = np.log(weights.sum()) + scores.max()
    return out, lse


def bound_of_rounded_weights(problem: Problem, kv: np.ndarray, expected: np.ndarray, **options) -> np.ndarray:
    """Return how far each output may be from `expected` when its weights are rounded to bfloat16.

    With weights p(1 + d), |d| <= 2^-8, the output moves by sum(p d (v - out)) / sum(p), at most by
    2^-8 (sum(p |v|) / sum(p) + |out|).
    """
    magnitudes = kv.copy()
    magnitudes[:, :, 1] = np.abs(kv[:, :, 1])
    spread, _ = exact(problem, magnitudes, **options)
    return 2.0**-8 * (spread + np.abs(expected)) + 2e-6 * np.abs(expected).max()


def tolerance(problem: Problem) -> float:
    """Return the error allowed relative to the largest output: only bfloat16 over bfloat16 may round its weights."""
    return 2e-3 if problem.q.dtype == problem.kv.dtype == jnp.bfloat16 else 2e-6
