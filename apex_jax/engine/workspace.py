"""What an engine's programs take of a device's memory, beside weights and KV."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from ..execution.paged_attention import LARGE_BLOCK, SCORE_BYTES, SUMMED_TOKENS, TOGETHER_TOKENS
from ..models.config import LlamaConfig

SLOT_BYTES = 2048
"""Page table and sampling settings of a request, beside what grows with the vocabulary."""

SAMPLED_BYTES = 24
"""Of a row's logit while tokens are sampled: itself, sorted, with its index, a sum, and a bias and penalty."""

LIBRARY_BYTES = 8 << 20
"""Workspace of an accelerator's library of matrix products."""

COPIED_GROUP = 8
"""Query heads of a key head from which XLA gathers pages before it reads them, on GPUs for which it has Triton."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an engine's programs and the state of its requests take beside weights and KV.

    The programs compiled for GPUs stay below it; see tests/fit.

    Args:
        config, dtype: the model and the type of its weights and KV.
        page_size: tokens of a KV page.
        longest: the longest context, in tokens.
        accelerator: attention is XLA's, which keeps scores in device memory.
    """

    config: LlamaConfig
    dtype: jnp.dtype
    page_size: int
    longest: int
    accelerator: bool

    def nbytes(self, *, requests: int, prompt_tokens: int) -> int:
        """Return the bytes for so many requests at once, on both sides, and prompt tokens of one iteration."""
        config = self.config
        state = requests * (config.vocab_size + SLOT_BYTES)
        sampling = requests * config.vocab_size * SAMPLED_BYTES
        # Residual stream, heads and the inside of the feed-forward block, in float32.
        per_token = 4 * (2 * config.hidden_size + 2 * config.query_size + 3 * config.intermediate_size)
        layers = (requests + prompt_tokens) * per_token + LIBRARY_BYTES * self.accelerator
        if self.accelerator:
            layers += attention_workspace(
                rows=requests,
                prompt_tokens=prompt_tokens,
                longest=self.longest,
                page_size=self.page_size,
                heads=(config.num_attention_heads, config.num_key_value_heads, config.head_dim),
                itemsize=jnp.dtype(self.dtype).itemsize,
            )
        return state + max(sampling, layers)


def attention_workspace(
    *, rows: int, prompt_tokens: int, longest: int, page_size: int, heads: tuple[int, int, int], itemsize: int
) -> int:
    """Return the bytes that attention takes at most on an accelerator, beside its operands and results.

    Args:
        rows, prompt_tokens: of one iteration.
        longest: context, in tokens.
        page_size: tokens of a page.
        heads: query heads N, key/value heads K, and their width H.
        itemsize: bytes of a number of the cache.
    """
    query_heads, kv_heads, width = heads
    token_bytes = 2 * kv_heads * width * itemsize
    scores = min(max(SCORE_BYTES, 2 * rows * query_heads * page_size * 4), rows * query_heads * longest * 4)
    scored = scores // (query_heads * 4)
    pieces = max(2 * rows, scored // SUMMED_TOKENS) * query_heads * width * 4
    # With that many query heads to a key head XLA gathers pages before it reads them.
    copied = scored * token_bytes if query_heads >= COPIED_GROUP * kv_heads else 0
    together = min(prompt_tokens, TOGETHER_TOKENS)
    block = min(LARGE_BLOCK, longest)
    # Scores in float32 and weights in a half type, the block's keys and values, and the sums so far.
    prefill = together * query_heads * (6 * block + 12 * width) + -(-together // page_size) * block * token_bytes
    return max(2 * scores + 2 * pieces + copied, prefill)
