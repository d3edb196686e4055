"""Parameter trees of Flax programs: modules, states, boxed leaves, linen's variables, own names, tunix, MaxText."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from apex_jax.models import LlamaConfig, Target, params_dtype, weights_from_params
from apex_jax.models.loading.hf_names import checkpoint_shapes

from .trees import nested

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
D, N, K, H, L = 32, 4, 2, 16, 3
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


@pytest.fixture(scope="module")
def tensors():
    """By Hugging Face's names."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in checkpoint_shapes(CONFIG).items()}


@pytest.fixture(scope="module")
def weights(tensors):
    return weights_from_params(CONFIG, tensors, dtype="float32")


@pytest.fixture
def same(weights):
    def check(params, mapping=None):
        found = weights_from_params(CONFIG, params, dtype="float32", mapping=mapping)
        jax.tree.map(np.testing.assert_array_equal, found, weights)

    return check


def kernels(tensors):
    """Return Flax's names: matrices [in, out] are kernels, norms have scales, the table is an embedding."""
    named = {}
    for name, array in tensors.items():
        stem = name.removesuffix(".weight")
        leaf = "embedding" if "embed" in name else "scale" if "norm" in name else "kernel"
        named[f"{stem}.{leaf}"] = array.T if leaf == "kernel" else array
    return named


def heads(array, count):
    """[out, in] to [in, heads, width]."""
    return array.T.reshape(D, count, H)


class Node(nnx.Module):
    """A module with the arrays of a nested mapping."""

    def __init__(self, tree):
        for name, value in tree.items():
            setattr(self, name, Node(value) if isinstance(value, dict) else nnx.Param(jnp.asarray(value)))


def module(tensors):
    tree = nested(kernels(tensors))
    layers = tree["model"].pop("layers")
    model = Node(tree)
    model.model.layers = nnx.List([Node(layers[str(layer)]) for layer in range(L)])
    model.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))
    return model


def test_flax_modules_and_states(tensors, same):
    model = module(tensors)
    same(model)
    same(nnx.state(model, nnx.Param))
    same(nnx.state(model))
    same(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    same({"model": model.model, "lm_head": nnx.state(model.lm_head)})


def test_variables_and_boxes_as_leaves(tensors, same):
    same({name: nnx.Param(jnp.asarray(array)) for name, array in tensors.items()})
    same({name: nnx.Variable(jnp.asarray(array)) for name, array in tensors.items()})
    same({name: linen.Partitioned(jnp.asarray(array), names=(None,) * array.ndim) for name, array in tensors.items()})


def test_linen_variables(tensors, same):
    same({"params": nested(kernels(tensors))})
    # Layers as linen names them, and no "model" around them.
    inside = {
        name.removeprefix("model.").replace("layers.", "layers_"): array for name, array in kernels(tensors).items()
    }
    same({"params": nested(inside), "cache": {"index": np.zeros((), np.int32)}})


def test_heads_may_be_an_axis_of_their_own(tensors, same):
    named = kernels(tensors)
    for layer in range(L):
        prefix = f"model.layers.{layer}.self_attn"
        for name, count in (("q", N), ("k", K), ("v", K)):
            named[f"{prefix}.{name}_proj.kernel"] = heads(tensors[f"{prefix}.{name}_proj.weight"], count)
        named[f"{prefix}.o_proj.kernel"] = tensors[f"{prefix}.o_proj.weight"].T.reshape(N, H, D)
    same(named)


def test_a_table_of_ones_own(tensors, same):
    own = {"wte": tensors["model.embed_tokens.weight"], "out": tensors["lm_head.weight"].T}
    table = {"wte": "model.embed_tokens.weight", "out": "lm_head.kernel", "ln_f": "model.norm.weight"}
    own["ln_f"] = tensors["model.norm.weight"]
    for name in (*PROJECTIONS, *MLP, *NORMS):
        table[f"h.*.{name.replace('.', '_')}"] = f"model.layers.*.{name}.weight"
        own |= {
            f"h.{layer}.{name.replace('.', '_')}": tensors[f"model.layers.{layer}.{name}.weight"] for layer in range(L)
        }
    same(own, table)
    # All layers in one array, up and gate doubled.
    for name in MLP:
        table[f"stacked.{name}"] = Target(name=f"model.layers.*.{name}.weight", layer_axis=2, change=lambda w: w / 2)
        parts = [own.pop(f"h.{layer}.{name.replace('.', '_')}") * 2 for layer in range(L)]
        own[f"stacked.{name}"] = np.stack(parts, axis=2)
    same(own, table)


def test_a_function(tensors, same):
    own = {name.replace("model.layers", "blocks"): array for name, array in tensors.items()}
    same(own, lambda named: {name.replace("blocks", "model.layers"): array for name, array in named.items()})
    same(own, lambda named: nested({name.replace("blocks", "model.layers"): array for name, array in named.items()}))


def tunix(tensors):
    named = {
        "embedder.input_embedding": tensors["model.embed_tokens.weight"],
        "final_norm.w": tensors["model.norm.weight"],
        "lm_head.w": tensors["lm_head.weight"].T,
    }
    for layer in range(L):
        theirs = f"model.layers.{layer}"
        for name, count in (("q_proj", N), ("k_proj", K), ("v_proj", K)):
            named[f"layers.{layer}.attn.{name}.w"] = heads(tensors[f"{theirs}.self_attn.{name}.weight"], count)
        named[f"layers.{layer}.attn.o_proj.w"] = tensors[f"{theirs}.self_attn.o_proj.weight"].T.reshape(N, H, D)
        for name in MLP:
            named[f"layers.{layer}.{name}.kernel"] = tensors[f"{theirs}.{name}.weight"].T
        for name in NORMS:
            named[f"layers.{layer}.{name}.w"] = tensors[f"{theirs}.{name}.weight"]
    return named


def test_tunix(tensors, same):
    same(tunix(tensors), "tunix")
    # What of qwen's this configuration does not have is named.
    more = {"layers.0.attn.q_bias": np.zeros(N * H, np.float32), "layers.0.attn.q_norm.w": np.ones(H, np.float32)}
    with pytest.raises(
        ValueError, match=r"not part of this model: layers\.0\.attn\.q_bias, layers\.0\.attn\.q_norm\.w$"
    ):
        weights_from_params(CONFIG, tunix(tensors) | more, dtype="float32", mapping="tunix")


def maxtext(tensors, *, interleaved, scanned):
    """As MaxText holds a checkpoint of Hugging Face's: queries divided by sqrt(H), scanned layers along axis 1."""

    def turned(array):
        pairs = np.stack([array[..., : H // 2], array[..., H // 2 :]], axis=-1)
        return pairs.reshape(array.shape) if interleaved else array

    def of_layer(layer):
        def tensor(name):
            return tensors[f"model.layers.{layer}.{name}.weight"]

        return {
            "self_attention.query.kernel": turned(heads(tensor("self_attn.q_proj"), N) / 4),
            "self_attention.key.kernel": turned(heads(tensor("self_attn.k_proj"), K)),
            "self_attention.value.kernel": heads(tensor("self_attn.v_proj"), K),
            "self_attention.out.kernel": tensor("self_attn.o_proj").T.reshape(N, H, D),
            "mlp.wi_0.kernel": tensor("mlp.gate_proj").T,
            "mlp.wi_1.kernel": tensor("mlp.up_proj").T,
            "mlp.wo.kernel": tensor("mlp.down_proj").T,
            "pre_self_attention_layer_norm.scale": tensor("input_layernorm"),
            "post_self_attention_layer_norm.scale": tensor("post_attention_layernorm"),
        }

    layers = [of_layer(layer) for layer in range(L)]
    named = {
        "token_embedder.embedding": tensors["model.embed_tokens.weight"],
        "decoder.decoder_norm.scale": tensors["model.norm.weight"],
        "decoder.logits_dense.kernel": tensors["lm_head.weight"].T,
    }
    for name in layers[0]:
        if scanned:
            named[f"decoder.layers.{name}"] = np.stack([layer[name] for layer in layers], axis=1)
        else:
            named |= {f"decoder.layers_{index}.{name}": layer[name] for index, layer in enumerate(layers)}
    return {"params": {"params": nested(named)}}


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize(("mapping", "interleaved"), [("maxtext", False), ("maxtext-llama3.1", True)])
def test_maxtext(mapping, interleaved, scanned, tensors, same):
    same(maxtext(tensors, interleaved=interleaved, scanned=scanned), mapping)


def test_in_a_compiled_function(tensors, weights):
    compiled = jax.jit(lambda tree: weights_from_params(CONFIG, tree, dtype="float32", mapping="maxtext"))
    tree = maxtext(tensors, interleaved=False, scanned=True)
    jax.tree.map(np.testing.assert_array_equal, compiled(tree), weights)


def test_the_type_of_variables(tensors):
    halves = {name: nnx.Param(jnp.asarray(array, "bfloat16")) for name, array in tensors.items()}
    assert params_dtype(CONFIG, halves) == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "mapping", "error", "said"),
    [
        (
            lambda t: t,
            "flux",
            ValueError,
            "mapping must be one of tunix, maxtext, maxtext-llama3.1, a table or a function",
        ),
        (lambda t: t, 7, TypeError, "mapping must be a name, a table or a function, got int"),
        (lambda t: t, {"a": 3}, TypeError, "a mapping's values must be Hugging Face names or Targets, got 3"),
        (lambda t: t, lambda named: 3, TypeError, "mapping must return a mapping of named arrays, got int"),
        (lambda t: t | {"lm_head.kernel": t["lm_head.weight"].T}, None, ValueError, "are both lm_head.weight"),
        (
            lambda t: {**kernels(t), "model.layers.1.mlp.up_proj.kernel": t["model.layers.1.mlp.up_proj.weight"]},
            None,
            ValueError,
            "model.layers.1.mlp.up_proj.kernel (model.layers.1.mlp.up_proj.weight) has shape [48, 32], needs [32, 48]",
        ),
        (
            lambda t: {"decoder.layers.mlp.wo.kernel": np.zeros((48, 2, 32), np.float32)},
            "maxtext",
            ValueError,
            "params['decoder.layers.mlp.wo.kernel'] has shape [48, 2, 32], needs 3 layers along axis 1",
        ),
    ],
)
def test_what_does_not_fit_is_said(change, mapping, error, said, tensors):
    with pytest.raises(error) as raised:
        weights_from_params(CONFIG, change(tensors), dtype="float32", mapping=mapping)
    assert said in str(raised.value)


@pytest.mark.parametrize("long", [1, 300])
def test_errors_stay_below_a_screen(long):
    """A model of 80 layers, all of whose names are others, and all of whose shapes are."""
    deep = CONFIG.replace(num_hidden_layers=80)
    own = {f"{'block' * long}.{name}": np.zeros(shape, np.float32) for name, shape in checkpoint_shapes(deep).items()}
    with pytest.raises(
        ValueError, match=r"missing: .* and 715 more; not part of this model: .* and 715 more"
    ) as raised:
        weights_from_params(deep, own, dtype="float32")
    assert len(str(raised.value)) < 2000
    wrong = {name: np.zeros((5, *shape), np.int32) for name, shape in checkpoint_shapes(deep).items()}
    with pytest.raises(
        ValueError, match=r"model\.embed_tokens\.weight has shape \[5, 64, 32\], needs \[64, 32\]"
    ) as raised:
        weights_from_params(deep, wrong, dtype="float32")
    assert len(str(raised.value)) < 2000
