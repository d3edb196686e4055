"""Random weights and weights from parameter trees: structure, scale, and no recompiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.models import (
    LlamaConfig,
    Weights,
    abstract_weights,
    embed,
    forward,
    logits,
    params_dtype,
    post_attention,
    pre_attention,
    random_weights,
    rotation,
    weights_from_params,
)
from apex_jax.models.loading.hf_names import checkpoint_shapes

from ..compilations import counted_compilations
from .trees import nested

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    attention_bias=True,
)


TOKENS = jnp.arange(10, dtype=jnp.int32)[None]


def draw(config: LlamaConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in checkpoint_shapes(config).items()
    }


def described(weights: Weights):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_random_weights_fill_the_description(dtype):
    weights = random_weights(CONFIG, 3, dtype)
    assert described(weights) == described(abstract_weights(CONFIG, dtype))


def test_random_weights_depend_on_seed_and_name_alone():
    weights, again = random_weights(CONFIG, 1, "float32"), random_weights(CONFIG, 1, "float32")
    deeper, other = (
        random_weights(CONFIG.replace(num_hidden_layers=3), 1, "float32"),
        random_weights(CONFIG, 2, "float32"),
    )
    kernel = np.asarray(weights.layers[1]["qkv"]["kernel"])
    np.testing.assert_array_equal(kernel, again.layers[1]["qkv"]["kernel"])
    np.testing.assert_array_equal(kernel, deeper.layers[1]["qkv"]["kernel"])
    assert not np.array_equal(kernel, other.layers[1]["qkv"]["kernel"])
    assert not np.array_equal(kernel, weights.layers[0]["qkv"]["kernel"])


def test_random_weights_are_uniform_and_keep_logits_of_order_one():
    config = CONFIG.replace(hidden_size=256, intermediate_size=512, vocab_size=1000)
    weights = random_weights(config, 0, "float32")
    kernel = np.asarray(weights.layers[0]["gate_up"]["kernel"]) * 16
    assert abs(kernel.mean()) < 0.01
    assert kernel.std() == pytest.approx(1, rel=0.01)
    counts, _ = np.histogram(kernel, bins=16, range=(-(3**0.5), 3**0.5))
    np.testing.assert_allclose(counts, kernel.size / 16, rtol=0.05)
    assert abs(np.corrcoef(kernel[:, :-1].ravel(), kernel[:, 1:].ravel())[0, 1]) < 0.01
    assert 0.7 < np.std(forward(config, weights, TOKENS)) < 1.4


def test_halves_of_a_layer_have_the_documented_shapes():
    weights = random_weights(CONFIG, 0, "bfloat16")
    tokens, positions = TOKENS[0], TOKENS[0]
    x = embed(CONFIG, weights, tokens)
    q, k, v = pre_attention(CONFIG, weights.layers[0], x, rotation(CONFIG, positions))
    assert (q.shape, k.shape, v.shape) == ((10, 4, 8), (10, 2, 8), (10, 2, 8))
    assert {q.dtype, k.dtype, v.dtype} == {jnp.dtype("bfloat16")}
    assert x.dtype == jnp.float32
    x = post_attention(CONFIG, weights.layers[0], x, q.astype(jnp.float32))
    assert (x.shape, x.dtype) == ((10, 32), jnp.float32)
    out = logits(CONFIG, weights, x)
    assert (out.shape, out.dtype) == ((10, 64), jnp.float32)


def test_all_forms_of_params_agree():
    params = draw(CONFIG)
    flat = weights_from_params(CONFIG, params, dtype="float32")
    tree = nested(params)
    by_number = weights_from_params(CONFIG, tree, dtype="float32")
    tree["model"]["layers"] = [tree["model"]["layers"][str(index)] for index in range(2)]
    as_list = weights_from_params(CONFIG, tree, dtype="float32")
    own = weights_from_params(CONFIG, flat, dtype="float32")
    for other in (by_number, as_list, own):
        jax.tree.map(np.testing.assert_array_equal, flat, other)


def test_conversion_compiles_once_and_so_do_programs_that_use_it():
    convert = jax.jit(lambda params: weights_from_params(CONFIG, params, dtype="bfloat16"), donate_argnums=0)
    compiled = jax.jit(lambda weights: forward(CONFIG, weights, TOKENS))
    params = [jax.tree.map(jnp.asarray, random_weights(CONFIG, seed, "bfloat16")) for seed in range(3)]
    others = weights_from_params(CONFIG, draw(CONFIG), dtype="bfloat16")
    with counted_compilations() as compilations:
        for arrays in params:
            weights = convert(arrays)
            assert described(weights) == described(abstract_weights(CONFIG, "bfloat16"))
            compiled(weights)
        compiled(others)
    assert len(compilations) == 2


def test_tied_head_beside_the_embedding_is_left_out():
    config = CONFIG.replace(tie_word_embeddings=True)
    params = draw(config)
    weights = weights_from_params(
        config, params | {"lm_head.weight": params["model.embed_tokens.weight"]}, dtype="float32"
    )
    assert weights.head is None


def test_all_problems_of_params_are_named_together():
    params = draw(CONFIG)
    del params["model.norm.weight"], params["model.layers.1.self_attn.k_proj.bias"]
    params["model.layers.0.mlp.up_proj.weight"] = params["model.layers.0.mlp.up_proj.weight"].T
    params["model.layers.2.input_layernorm.weight"] = np.zeros(32, np.float32)
    params["model.layers.0.input_layernorm.weight"] = np.zeros(32, np.int32)
    with pytest.raises(ValueError, match="params do not fit") as caught:
        weights_from_params(CONFIG, params, dtype="int8")
    message = str(caught.value)
    assert "missing: model.layers.1.self_attn.k_proj.bias, model.norm.weight" in message
    assert "not part of this model: model.layers.2.input_layernorm.weight" in message
    assert "model.layers.0.mlp.up_proj.weight has shape [32, 48], needs [48, 32]" in message
    assert "model.layers.0.input_layernorm.weight holds int32, needs floating-point numbers" in message


def test_own_weights_of_another_model_are_refused_by_name():
    weights = random_weights(CONFIG.replace(hidden_size=16), 0, "float32")
    with pytest.raises(ValueError, match=r"layers\.0\.qkv\.kernel has shape \[16, 64\], needs \[32, 64\]"):
        weights_from_params(CONFIG, weights, dtype="float32")


def test_the_type_of_most_numbers_counts():
    """A stray float64 leaf, as numpy makes them by itself, neither decides nor hides what does not fit."""
    params = {name: jnp.asarray(array, "bfloat16") for name, array in draw(CONFIG).items()}
    params["model.embed_tokens.weight"] = np.zeros((64, 32))
    assert params_dtype(CONFIG, params) == jnp.bfloat16
    assert weights_from_params(CONFIG, params, dtype="bfloat16").dtype == jnp.bfloat16
    assert params_dtype(CONFIG, params, dtype="float16") == jnp.float16
    with pytest.raises(ValueError, match=r"missing: model\.norm\.weight"):
        params_dtype(CONFIG, {name: array for name, array in params.items() if name != "model.norm.weight"})
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16, got float64"):
        params_dtype(CONFIG, {name: np.float64(array) for name, array in draw(CONFIG).items()})


def test_a_configuration_of_another_kind():
    with pytest.raises(TypeError, match="config must be a LlamaConfig, got dict"):
        weights_from_params({"vocab_size": 64}, draw(CONFIG), dtype="float32")


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ([1, 2], "a mapping of named arrays, got list"),
        ({"model": {"norm": 3}}, r"params\['model.norm'\] must be an array of JAX or numpy, got int"),
        (Weights(embed={"table": [1.0]}, layers=(), norm={}, head=None), r"params\['embed.table.0'\] must be an array"),
    ],
)
def test_params_of_another_kind(params, complaint):
    with pytest.raises(TypeError, match=complaint):
        weights_from_params(CONFIG, params, dtype="float32")
