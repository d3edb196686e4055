"""A window of attention shorter than the context, against transformers' Mistral."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.models import LlamaConfig, forward, weights_from_params
from apex_jax.models.loading.hf_names import checkpoint_shapes

CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
)
PROMPT, NEW = 40, 64
compiled = jax.jit(forward, static_argnums=0)


def draw(config, window):
    """Return float32 tensors that give logits of order 1, and token ids [2, PROMPT + NEW]."""
    rng = np.random.default_rng(zlib.crc32(f"window {window}".encode()))
    params = {}
    for name, shape in checkpoint_shapes(config).items():
        values = rng.standard_normal(shape)
        params[name] = (values / np.sqrt(shape[1]) if len(shape) == 2 else 1 + 0.2 * values).astype(np.float32)
    return params, rng.integers(0, config.vocab_size, (2, PROMPT + NEW))


@pytest.mark.parametrize("window", [1, 2, 24, 100, 104, 300])
def test_transformers_own_mistral(window):
    torch = pytest.importorskip("torch", reason="compares with transformers on torch")
    from transformers import MistralConfig, MistralForCausalLM

    config = CONFIG.replace(sliding_window=window)
    params, tokens = draw(config, window)
    theirs = MistralForCausalLM(
        MistralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            sliding_window=window,
            attn_implementation="eager",
        )
    ).eval()
    theirs.load_state_dict({name: torch.from_numpy(values) for name, values in params.items()}, strict=True)
    torch.set_num_threads(1)  # such small products only wait for each other's threads
    weights = weights_from_params(config, params, dtype="float32")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
        greedy = torch.from_numpy(tokens[:, :PROMPT])
        for _ in range(NEW):
            # Without their cache, which keeps everything for a window of 1.
            best = theirs(greedy, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            greedy = torch.cat([greedy, best], dim=1)
        greedy = greedy.numpy()
    assert 0.3 < np.std(expected) < 3
    found = np.asarray(compiled(config, weights, jnp.asarray(tokens, jnp.int32)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    chosen = np.asarray(compiled(config, weights, jnp.asarray(greedy, jnp.int32))).argmax(-1)
    np.testing.assert_array_equal(chosen[:, PROMPT - 1 : -1], greedy[:, PROMPT:])


@pytest.mark.parametrize("window", [0, -1, 2**31, 2.5, True, "all"])
def test_what_is_no_window(window):
    with pytest.raises(ValueError, match=f"sliding_window must be .*, got {window!r}"):
        CONFIG.replace(sliding_window=window)
