"""What requests change of their rows' logits beyond fixed settings: tokens allowed, biases, penalties on output.

The host works them out between two iterations, from all tokens that a request has had. What is sparse there is sent
sparse: a set of allowed tokens is packed into bits, and what is added to single logits goes as entries of a fixed
number, so that nothing is compiled for how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

ENTRIES = 4096
"""Entries that are written into `LogitEdits.added` at once."""

WORD = 32
"""Tokens in a word of allowed ones."""


@dataclass(frozen=True, kw_only=True)
class RowEdits:
    """The changes of one row, in host memory; of E tokens, each once.

    Attributes:
        allowed: uint32 [ceil(V / 32)], bit t % 32 of word t // 32 is token t; None allows all.
        ids: int32 [E].
        bias: float32 [E], added to the model's logits.
        penalty: float32 [E], taken off behind the repetition penalty.
    """

    allowed: np.ndarray | None
    ids: np.ndarray
    bias: np.ndarray
    penalty: np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LogitEdits:
    """The changes of B rows.

    Attributes:
        allowed: uint32 [B, ceil(V / 32)].
        added: float32 [2, B, V], bias and penalty.
    """

    allowed: Array
    added: Array


def words(vocab_size: int) -> int:
    """Return how many words hold a set of tokens."""
    return -(-vocab_size // WORD)


def pack_tokens(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """Return a set of tokens as uint32 [ceil(V / 32)]."""
    member = np.zeros(words(vocab_size) * WORD, bool)
    member[list(ids)] = True
    return np.packbits(member, bitorder="little").view("<u4").astype(np.uint32)


def pack_allowed(rows: Sequence[RowEdits | None], count: int, vocab_size: int) -> np.ndarray:
    """Return what rows allow, uint32 [count, ceil(V / 32)]; None and what is missing allow all."""
    packed = np.full((count, words(vocab_size)), 2**32 - 1, np.uint32)
    for row, edits in enumerate(rows):
        if edits is not None and edits.allowed is not None:
            packed[row] = edits.allowed
    return packed


def pack_entries(rows: Sequence[RowEdits | None], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the entries of all rows, ENTRIES at a time: places int32 [2, ENTRIES], which are rows (`count` where there
    is none) and tokens, and what is added there, float32 [2, ENTRIES]. At least once, so that there is an array."""
    given = [(row, edits) for row, edits in enumerate(rows) if edits is not None]
    places = [np.zeros((2, 0), np.int32), *(np.stack([np.full_like(e.ids, row), e.ids]) for row, e in given)]
    values = [np.zeros((2, 0), np.float32), *(np.stack([e.bias, e.penalty]) for _, e in given)]
    places, values = np.concatenate(places, axis=1), np.concatenate(values, axis=1)
    for start in range(0, max(1, places.shape[1]), ENTRIES):
        size = min(ENTRIES, places.shape[1] - start)
        part, added = np.zeros((2, ENTRIES), np.int32), np.zeros((2, ENTRIES), np.float32)
        part[0] = count
        part[:, :size], added[:, :size] = places[:, start : start + size], values[:, start : start + size]
        yield part, added


def many_entries() -> tuple[RowEdits]:
    """Return edits of one row that change nothing and are sent in two parts."""
    ids, nothing = np.zeros(ENTRIES + 1, np.int32), np.zeros(ENTRIES + 1, np.float32)
    return (RowEdits(allowed=None, ids=ids, bias=nothing, penalty=nothing),)


def spread(added: Array | None, places: Array, values: Array, *, count: int, vocab_size: int) -> Array:
    """Return float32 [2, B, V], zeros if None, with entries of `pack_entries` written into it."""
    if added is None:
        added = jnp.zeros((2, count, vocab_size), jnp.float32)
    return added.at[:, places[0], places[1]].set(values, mode="drop")


def is_allowed(allowed: Array, vocab_size: int) -> Array:
    """Return bool [B, V] of uint32 [B, ceil(V / 32)]."""
    bits = allowed[:, :, None] >> jnp.arange(WORD, dtype=jnp.uint32)[None, None, :]
    return ((bits & 1) > 0).reshape(allowed.shape[0], -1)[:, :vocab_size]
