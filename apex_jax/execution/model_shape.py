"""A model as the scheduler knows it: by its sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..models.config import LlamaConfig
from ..scheduler import ModelShape


def shape_of(config: LlamaConfig, dtype: jax.typing.DTypeLike, *, name: str = "model") -> ModelShape:
    """Return the sizes of a model whose weights and KV cache are of one type."""
    size = jnp.dtype(dtype).itemsize
    return ModelShape(
        name=name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        weight_bytes=size,
        kv_bytes=size,
        tied=config.tie_word_embeddings,
    )
