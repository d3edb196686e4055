"""Strictness for every test (no silent broadcasting of ranks or promotion of number types), and a toy machine."""

import json

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

TOY = {
    "devices": [
        {
            "name": "toy",
            "memory_gb": 1,
            "weights_gb_per_s": 0.1,
            "attention_gb_per_s": 1,
            "tflops": 1,
            "link_gb_per_s": 1,
        }
    ],
    "models": [
        {
            "name": "toy",
            "num_layers": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "intermediate_size": 128,
            "vocab_size": 128,
        }
    ],
}


@pytest.fixture
def toy_hardware(tmp_path):
    """A hardware file that describes the toy machine."""
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY), encoding="utf-8")
    return path
