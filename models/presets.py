"""Configurations of published models by name, each from its `config.json`, for random weights at any layer count."""

from typing import Any

from .config import LlamaConfig
from .rope import RopeConfig


def _model(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int, **settings: Any
) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        **settings,
    )


_LLAMA_2 = {"vocab_size": 32_000, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_ids": (2,)}
_LLAMA_3 = {
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "bos_token_id": 128_000,
    "eos_token_ids": (128_001, 128_008, 128_009),
}
_SMOLLM2 = {
    **_LLAMA_2,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def _stretched(factor: float) -> RopeConfig:
    return RopeConfig(
        rope_type="llama3",
        theta=500_000.0,
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


PRESETS: dict[str, LlamaConfig] = {
    "llama-2-7b": _model(4096, 11_008, 32, 32, 32, 128, **_LLAMA_2),
    "llama-2-13b": _model(5120, 13_824, 40, 40, 40, 128, **_LLAMA_2),
    "llama-3.1-8b": _model(4096, 14_336, 32, 32, 8, 128, rope=_stretched(8.0), **_LLAMA_3),
    "llama-3.1-70b": _model(8192, 28_672, 80, 64, 8, 128, rope=_stretched(8.0), **_LLAMA_3),
    "llama-3.2-1b": _model(2048, 8192, 16, 32, 8, 64, rope=_stretched(32.0), tie_word_embeddings=True, **_LLAMA_3),
    "llama-3.2-3b": _model(3072, 8192, 28, 24, 8, 128, rope=_stretched(32.0), tie_word_embeddings=True, **_LLAMA_3),
    "tinyllama-1.1b": _model(2048, 5632, 22, 32, 4, 64, **_LLAMA_2 | {"max_position_embeddings": 2048}),
    "smollm2-135m": _model(576, 1536, 30, 9, 3, 64, rope=RopeConfig(theta=100_000.0), **_SMOLLM2),
    "smollm2-360m": _model(960, 2560, 32, 15, 5, 64, rope=RopeConfig(theta=100_000.0), **_SMOLLM2),
    "smollm2-1.7b": _model(2048, 8192, 24, 32, 32, 64, rope=RopeConfig(theta=130_000.0), **_SMOLLM2),
}


def preset(name: str, *, num_layers: int | None = None) -> LlamaConfig:
    """Return a published configuration, with another number of layers if one is given.

    Raises:
        ValueError: the name is not a preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; presets: {', '.join(PRESETS)}")
    config = PRESETS[name]
    return config if num_layers is None else config.replace(num_hidden_layers=num_layers)
