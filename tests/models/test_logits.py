"""Logits and greedy tokens against transformers' LlamaForCausalLM: live where torch is, and as stored numbers.

`python tests/models/test_logits.py` writes the stored numbers anew from transformers.
"""

import copy
import functools
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.models import LlamaConfig, forward, weights_from_params
from apex_jax.models.loading.hf_names import checkpoint_shapes

GOLDENS = Path(__file__).parent / "goldens" / "logits.npz"
PROMPT, NEW = 16, 64

COMMON = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "mha_tied": {"tie_word_embeddings": True},
    "gqa_own_head": {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "mqa_attention_bias": {"num_key_value_heads": 1, "attention_bias": True},
    "gqa_mlp_bias_tied": {"num_key_value_heads": 3, "mlp_bias": True, "tie_word_embeddings": True},
    "wide_heads_all_biases": {"head_dim": 20, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "narrow_heads_linear_old": {"head_dim": 4, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "linear_new": {
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    },
    "llama3_new": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
    },
    "llama3_old_tied": {
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
    },
    "yarn_new": {
        "num_key_value_heads": 1,
        "head_dim": 24,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **YARN},
    },
    "yarn_old_tuned": {
        "head_dim": 24,
        "rope_theta": 2e4,
        "rope_scaling": {"type": "yarn", "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3, **YARN},
    },
    "yarn_mscale": {
        "head_dim": 12,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "mscale": 0.7,
            "mscale_all_dim": 0.3,
            "truncate": False,
            **YARN,
        },
    },
}


def settings(name: str) -> dict:
    return COMMON | CASES[name]


def draw(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return float32 tensors that give logits of order 1, and token ids [2, PROMPT + NEW]."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    params = {}
    for tensor, shape in checkpoint_shapes(LlamaConfig.from_hf(settings(name))).items():
        values = rng.standard_normal(shape)
        if len(shape) == 2:
            values /= np.sqrt(shape[1])
        elif tensor.endswith("norm.weight"):
            values = 1 + 0.2 * values
        params[tensor] = values.astype(np.float32)
    return params, rng.integers(0, COMMON["vocab_size"], (2, PROMPT + NEW))


def their_model(name: str) -> Any:
    """Return transformers' model in float32 with the drawn tensors."""
    import torch
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)  # such small products only wait for each other's threads
    params, _ = draw(name)
    config = TheirConfig(**copy.deepcopy(settings(name)), attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    state = {tensor: torch.from_numpy(values) for tensor, values in params.items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def answer_of_transformers(name: str) -> dict[str, np.ndarray]:
    """Return logits [2, T, V] of the drawn tokens, and both rows' prompt continued greedily, [2, T]."""
    import torch

    model, (_, tokens) = their_model(name), draw(name)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits.numpy()
        greedy = torch.from_numpy(tokens[:, :PROMPT])
        for _ in range(NEW):
            best = model(greedy).logits[:, -1].argmax(-1, keepdim=True)
            greedy = torch.cat([greedy, best], dim=1)
    return {"logits": logits, "greedy": greedy.numpy().astype(np.int32)}


compiled = jax.jit(forward, static_argnums=0)


@functools.lru_cache
def answer(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return our logits and greedy continuation of the same tokens."""
    config = LlamaConfig.from_hf(settings(name))
    params, tokens = draw(name)
    weights = weights_from_params(config, params, dtype="float32")
    logits = np.asarray(compiled(config, weights, jnp.asarray(tokens, jnp.int32)))
    greedy = np.zeros(tokens.shape, np.int32)
    greedy[:, :PROMPT] = tokens[:, :PROMPT]
    for length in range(PROMPT, PROMPT + NEW):
        step = compiled(config, weights, jnp.asarray(greedy))
        greedy[:, length] = np.asarray(step)[:, length - 1].argmax(-1)
    return logits, greedy


def check(name: str, expected: dict[str, np.ndarray], stride: int) -> None:
    logits, greedy = answer(name)
    assert 0.3 < np.std(expected["logits"]) < 3
    np.testing.assert_allclose(logits[:, ::stride], expected["logits"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(greedy, expected["greedy"])


@pytest.mark.parametrize("name", CASES)
def test_live(name: str):
    pytest.importorskip("torch", reason="the live comparison needs torch; the stored one does not")
    check(name, answer_of_transformers(name), 1)


@pytest.mark.parametrize("name", CASES)
def test_stored(name: str):
    with np.load(GOLDENS) as stored:
        check(name, {key: stored[f"{name}/{key}"] for key in ("logits", "greedy")}, 8)


HALF_CASES = ["gqa_own_head", "wide_heads_all_biases", "yarn_new"]


def half_and_exact(name: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of a half type, and those of the same rounded weights in float32 arithmetic."""
    config = LlamaConfig.from_hf(settings(name))
    params, tokens = draw(name)
    halves = weights_from_params(config, params, dtype=dtype)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    ids = jnp.asarray(tokens, jnp.int32)
    ours, exact = compiled(config, halves, ids), compiled(config, widened, ids)
    assert ours.dtype == jnp.float32
    return np.asarray(ours), np.asarray(exact)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 2**-9), ("float16", 2**-12)])
@pytest.mark.parametrize("name", HALF_CASES)
def test_half_types_stay_near_float32(name: str, dtype: str, rounding: float):
    """A rounding errs by half its unit on average; 16 lie on the way through two layers: 4 times, doubled for norms."""
    ours, exact = half_and_exact(name, dtype)
    assert rms(ours - exact) < 8 * rounding * rms(exact)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", HALF_CASES)
def test_half_types_err_no_more_than_transformers(name: str, dtype: str):
    torch = pytest.importorskip("torch", reason="compares with transformers on torch")
    ours, exact = half_and_exact(name, dtype)
    _, tokens = draw(name)
    with torch.no_grad():
        theirs = their_model(name).to(getattr(torch, dtype))(torch.from_numpy(tokens)).logits.float().numpy()
    assert rms(ours - exact) < rms(theirs - exact)


def write_goldens() -> None:
    """Store every eighth position's logits: enough to see any error, small enough to keep."""
    arrays = {}
    for name in CASES:
        found = answer_of_transformers(name)
        arrays |= {f"{name}/logits": found["logits"][:, ::8], f"{name}/greedy": found["greedy"].astype(np.uint8)}
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == "__main__":
    write_goldens()
