"""RoPE: frequencies against transformers' own functions, rotation against complex numbers, bad settings by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.models import PRESETS, LlamaConfig, RopeConfig
from apex_jax.models.rope import inverse_frequencies, rotate, rotation

SIZES = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 65_536,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "default", "rope_theta": 1e5},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
        {"rope_theta": 5e5, **LLAMA3},
        {"rope_theta": 1e4, **YARN},
        {"rope_theta": 1e6, **YARN, "beta_fast": 20.0, "beta_slow": 3.0, "mscale": 1.0, "mscale_all_dim": 0.5},
        {"rope_theta": 1e6, **YARN, "truncate": False, "attention_factor": 1.25},
    ],
)
def test_frequencies_equal_transformers(settings):
    pytest.importorskip("torch", reason="transformers computes RoPE frequencies with torch")
    from transformers import LlamaConfig as TheirConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = LlamaRotaryEmbedding(TheirConfig(**SIZES, rope_parameters=dict(settings)))
    ours = LlamaConfig.from_hf(SIZES | {"rope_parameters": settings})
    found = inverse_frequencies(ours.rope, ours.head_dim)
    np.testing.assert_allclose(found, theirs.inv_freq.numpy(), rtol=3e-7)
    assert ours.rope.attention_scaling == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_rotation_equals_complex_multiplication():
    """In float64: the pair (i, i + H/2) is one complex number, turned by position * theta ** (-2i / H)."""
    rng = np.random.default_rng(0)
    heads = rng.standard_normal((5, 3, 8)).astype(np.float32)
    positions = np.array([0, 1, 7, 100, 2000], np.int32)
    angles = positions[:, None] * 10_000.0 ** (-np.arange(0, 8, 2) / 8)
    turned = (heads[..., :4] + 1j * heads[..., 4:].astype(np.float64)) * np.exp(1j * angles)[:, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    found = rotate(jnp.asarray(heads), rotation(RopeConfig(), 8, jnp.asarray(positions)))
    np.testing.assert_allclose(np.asarray(found), expected, atol=5e-4)
    np.testing.assert_array_equal(np.asarray(found)[0], heads[0])


def test_both_forms_of_settings_are_one():
    new = RopeConfig.from_hf({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}})
    old = RopeConfig.from_hf({"rope_theta": 5e5, "rope_scaling": LLAMA3})
    older = {**LLAMA3, "type": LLAMA3["rope_type"]}
    del older["rope_type"]
    assert new == old == RopeConfig.from_hf({"rope_theta": 5e5, "rope_scaling": older}) == PRESETS["llama-3.2-1b"].rope
    assert RopeConfig.from_hf({"rope_scaling": None}) == RopeConfig()


def test_frequency_factors_divide():
    plain = inverse_frequencies(RopeConfig(), 4)
    np.testing.assert_allclose(inverse_frequencies(RopeConfig(frequency_factors=(1.0, 8.0)), 4), plain / [1, 8])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not implemented; implemented: default"),
        ({"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]}}, "'longrope' is not implemented"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be at least 1, got 0.5"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "needs low_freq_factor, high_freq_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3.0}}, "'linear' has no setting beta_fast"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "odd": 3.0}}, "not implemented: odd"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": 0.5}, "theta must be above 1, got 0.5"),
        ({"rope_theta": 0}, "rope_theta must be a finite positive number, got 0"),
        ({"rope_theta": -1e4}, "rope_theta must be a finite positive number, got -10000.0"),
        ({"rope_theta": float("nan")}, "rope_theta must be a finite positive number, got nan"),
        ({"rope_theta": float("inf")}, "rope_theta must be a finite positive number, got inf"),
        ({"rope_theta": "1e4"}, "rope_theta must be a finite positive number, got '1e4'"),
        ({"rope_theta": True}, "rope_theta must be a finite positive number, got True"),
        ({"rope_parameters": {"rope_theta": [1e4]}}, r"rope_theta must be a finite positive number, got \[10000.0\]"),
        ({"rope_scaling": "linear"}, "rope_scaling must be a mapping, got 'linear'"),
        ({"rope_parameters": [1, 2]}, r"rope_parameters must be a mapping, got \[1, 2\]"),
        ({"rope_scaling": {"type": ["linear"]}}, r"RoPE type \['linear'\] is not implemented"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "RoPE factor must be a finite positive number, got '2'"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "RoPE factor must be a finite .*, got nan"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "RoPE factor must be a finite .*, got inf"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "theta": 3.0}}, "not implemented: theta"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "frequency_factors": [1.0]}},
            "implemented: frequency_factors",
        ),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 0}}, "RoPE low_freq_factor must be a finite .*, got 0"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "RoPE low_freq_factor must be below high_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": -4.0}}, "RoPE high_freq_factor must be a finite .*, got -4.0"),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192.0}},
            "original_max_position_embeddings must be a positive integer, got 8192.0",
        ),
        ({"rope_scaling": {**YARN, "beta_fast": 0}}, "RoPE beta_fast must be a finite positive number, got 0"),
        ({"rope_scaling": {**YARN, "beta_slow": 40.0}}, "beta_slow must be below beta_fast, got 40.0 and 32.0"),
        ({"rope_scaling": {**YARN, "attention_factor": -1.0}}, "RoPE attention_factor must be a finite .*, got -1.0"),
        ({"rope_scaling": {**YARN, "mscale": -0.5}}, "RoPE mscale must be a finite number of at least 0, got -0.5"),
        ({"rope_scaling": {**YARN, "truncate": "no"}}, "RoPE truncate must be true or false, got 'no'"),
        (
            {"max_position_embeddings": "x", "rope_scaling": {"type": "yarn"}},
            "max_position_embeddings must be a positive",
        ),
    ],
)
def test_bad_settings_are_named(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        RopeConfig.from_hf(settings)


@pytest.mark.parametrize("factors", [(1.0, 0.0), (float("nan"),), ("1",)])
def test_bad_frequency_factors(factors):
    with pytest.raises(ValueError, match="every one of RoPE frequency_factors must be a finite positive number"):
        RopeConfig(frequency_factors=factors)
