"""Configurations of published models by name, each from its `config.json`, for random weights at any layer count."""

from .config import LlamaConfig
from .rope import RopeConfig


def _llama_2(hidden: int, intermediate: int, layers: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=128,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def _llama_3(
    hidden: int, intermediate: int, layers: int, heads: int, *, head_dim: int, stretch: float, tied: bool
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=head_dim,
        rope=RopeConfig(
            rope_type="llama3",
            theta=500_000.0,
            factor=stretch,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        max_position_embeddings=131_072,
        tie_word_embeddings=tied,
        bos_token_id=128_000,
        eos_token_ids=(128_001, 128_008, 128_009),
    )


def _smollm2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, theta: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=49_152,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        rope=RopeConfig(theta=theta),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def _tinyllama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


PRESETS: dict[str, LlamaConfig] = {
    "llama-2-7b": _llama_2(4096, 11_008, 32, 32),
    "llama-2-13b": _llama_2(5120, 13_824, 40, 40),
    "llama-3.1-8b": _llama_3(4096, 14_336, 32, 32, head_dim=128, stretch=8.0, tied=False),
    "llama-3.1-70b": _llama_3(8192, 28_672, 80, 64, head_dim=128, stretch=8.0, tied=False),
    "llama-3.2-1b": _llama_3(2048, 8192, 16, 32, head_dim=64, stretch=32.0, tied=True),
    "llama-3.2-3b": _llama_3(3072, 8192, 28, 24, head_dim=128, stretch=32.0, tied=True),
    "tinyllama-1.1b": _tinyllama(),
    "smollm2-135m": _smollm2(576, 1536, 30, 9, 3, theta=100_000.0),
    "smollm2-360m": _smollm2(960, 2560, 32, 15, 5, theta=100_000.0),
    "smollm2-1.7b": _smollm2(2048, 8192, 24, 32, 32, theta=130_000.0),
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
