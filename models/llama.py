"""The LLaMA decoder, cut in two around attention.

Flax NNX modules hold the structure. The functions below them are what programs compile: pure, over the raw arrays of
`Weights`, merged into modules inside the trace, so that no call pays for module objects. Tokens of any mixture of
requests stand in one batch of T rows; attention is whatever the caller computes between the two halves of a layer.

Matrices are [in, out] (`x @ w`), query/key/value fused into one and gate/up into another: one pass over one matrix is
what a decode step costs. Products accumulate in float32 and what follows them stays float32, the residual stream too:
with weights of a half type, numbers are rounded to it only where they go into a product or into the KV cache.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from . import rope
from .config import LlamaConfig

LayerWeights = dict[str, Any]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["embed", "layers", "norm", "head"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """All arrays of a model; a pytree of raw arrays.

    Attributes:
        embed: {"table": [V, D]}.
        layers: one tree a layer, all alike: {"attention_norm": {"scale": [D]}, "qkv": {"kernel": [D, (N+2K)*H]},
            "output": {"kernel": [N*H, D]}, "mlp_norm": {"scale": [D]}, "gate_up": {"kernel": [D, 2F]},
            "down": {"kernel": [F, D]}}; with biases, {"kernel", "bias"}.
        norm: {"scale": [D]}.
        head: {"kernel": [D, V]}; None where the head is the embedding.
    """

    embed: dict[str, Any]
    layers: tuple[LayerWeights, ...]
    norm: dict[str, Any]
    head: dict[str, Any] | None

    @property
    def dtype(self) -> jnp.dtype:
        """The type all arrays share."""
        return self.embed["table"].dtype


def _dot(x: jax.Array, w: jax.Array, contract: int) -> jax.Array:
    """Multiply [T, in] by a matrix along its axis `contract`; float32 [T, out].

    Float32 weights ask for full float32 products: accelerators would otherwise round the factors to fewer bits.
    """
    precision = jax.lax.Precision.HIGHEST if w.dtype == jnp.float32 else None

    def dot(x: jax.Array, w: jax.Array) -> jax.Array:
        dimensions = (((1,), (contract,)), ((), ()))
        return jax.lax.dot_general(x, w, dimensions, precision=precision, preferred_element_type=jnp.float32)

    def padded(x: jax.Array, w: jax.Array) -> jax.Array:
        return dot(jnp.concatenate([x, jnp.zeros_like(x)]), w)[:1]

    x = x.astype(w.dtype)
    if x.shape[0] > 1 or w.dtype == jnp.float32:
        return dot(x, w)
    # For one row alone XLA's GPU compiler would write a float32 copy of the matrix where it has no Triton.
    return jax.lax.platform_dependent(x, w, cpu=dot, default=padded)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over D, in float32 (arXiv 1910.07467); what it returns is rounded once, for a product."""

    def __init__(self, size: int, eps: float, dtype: jnp.dtype):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [T, D] in the dtype of the weights, for float32 x."""
        scale = self.scale[...]
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        normed = x * jax.lax.rsqrt(mean_square + jnp.float32(self.eps))
        return (normed * scale.astype(jnp.float32)[None, :]).astype(scale.dtype)


class Linear(nnx.Module):
    """x @ kernel + bias, kernel [in, out]."""

    def __init__(self, size_in: int, size_out: int, dtype: jnp.dtype, *, bias: bool):
        self.kernel = nnx.Param(jnp.zeros((size_in, size_out), dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return float32 [T, out]."""
        y = _dot(x, self.kernel[...], 0)
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)[None, :]


class Embedding(nnx.Module):
    """Table of token vectors, which is the output head too where the two are tied."""

    def __init__(self, config: LlamaConfig, dtype: jnp.dtype):
        self.table = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return float32 [T, D] for int32 [T]."""
        return jnp.take(self.table[...], tokens, axis=0, mode="clip").astype(jnp.float32)

    def attend(self, x: jax.Array) -> jax.Array:
        """Return float32 [T, V], the product of [T, D] with every token's vector."""
        return _dot(x, self.table[...], 1)


class DecoderLayer(nnx.Module):
    """One layer as two halves; the caller's attention stands between them."""

    def __init__(self, config: LlamaConfig, dtype: jnp.dtype):
        d, f = config.hidden_size, config.intermediate_size
        self.config = config
        self.attention_norm = RMSNorm(d, config.rms_norm_eps, dtype)
        self.qkv = Linear(d, config.query_size + 2 * config.kv_size, dtype, bias=config.attention_bias)
        self.output = Linear(config.query_size, d, dtype, bias=config.attention_bias)
        self.mlp_norm = RMSNorm(d, config.rms_norm_eps, dtype)
        self.gate_up = Linear(d, 2 * f, dtype, bias=config.mlp_bias)
        self.down = Linear(f, d, dtype, bias=config.mlp_bias)

    def pre_attention(self, x: jax.Array, turn: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Norm, project and rotate [T, D]; return q [T, N, H], k and v [T, K, H] in the dtype of the weights."""
        n, k, h = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        normed = self.attention_norm(x)
        heads = self.qkv(normed).reshape(x.shape[0], n + 2 * k, h)
        rotated = rope.rotate(heads[:, : n + k], turn).astype(normed.dtype)
        return rotated[:, :n], rotated[:, n:], heads[:, n + k :].astype(normed.dtype)

    def post_attention(self, x: jax.Array, attention: jax.Array) -> jax.Array:
        """Project attention [T, N, H], add it to x [T, D], then the feed-forward block and its residual."""
        f = self.config.intermediate_size
        x = x + self.output(attention.reshape(x.shape[0], -1))
        hidden = self.gate_up(self.mlp_norm(x))
        return x + self.down(jax.nn.silu(hidden[:, :f]) * hidden[:, f:])


class Llama(nnx.Module):
    """The whole decoder's structure: what `Weights` holds the arrays of."""

    def __init__(self, config: LlamaConfig, dtype: jnp.dtype):
        self.embed = Embedding(config, dtype)
        self.layers = nnx.List([DecoderLayer(config, dtype) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        tied = config.tie_word_embeddings
        self.head = None if tied else Linear(config.hidden_size, config.vocab_size, dtype, bias=False)


@functools.lru_cache(maxsize=64)
def _structure(config: LlamaConfig, dtype: jnp.dtype) -> tuple[dict[str, nnx.GraphDef], Weights]:
    """Return the parts' graph definitions, and their arrays' shapes as abstract `Weights` of one layer."""
    model = nnx.eval_shape(lambda: Llama(config.replace(num_hidden_layers=1), dtype))
    parts = {"embed": model.embed, "layer": model.layers[0], "norm": model.norm}
    if model.head is not None:
        parts["head"] = model.head
    split = {name: nnx.split(part) for name, part in parts.items()}
    arrays = {name: nnx.to_pure_dict(state) for name, (_, state) in split.items()}
    weights = Weights(embed=arrays["embed"], layers=(arrays["layer"],), norm=arrays["norm"], head=arrays.get("head"))
    return {name: graph for name, (graph, _) in split.items()}, weights


def abstract_weights(config: LlamaConfig, dtype: Any) -> Weights:
    """Describe every array of the model once: `Weights` of `jax.ShapeDtypeStruct`. All readers derive from it."""
    _, one_layer = _structure(config, jnp.dtype(dtype))
    return dataclasses.replace(one_layer, layers=one_layer.layers * config.num_hidden_layers)


def _merge(config: LlamaConfig, part: str, arrays: dict[str, Any]) -> Any:
    """Return the NNX module of one part around the arrays of a trace."""
    graphs, _ = _structure(config, jnp.dtype(jnp.float32))
    return nnx.merge(graphs[part], arrays)


def embed(config: LlamaConfig, weights: Weights, tokens: jax.Array) -> jax.Array:
    """Look up token vectors: int32 [T] to x, float32 [T, D]."""
    return _merge(config, "embed", weights.embed)(tokens)


def rotation(config: LlamaConfig, positions: jax.Array) -> jax.Array:
    """Return what `pre_attention` turns queries and keys by, one for all layers.

    Args:
        positions: int32 [T], each token's index in its own sequence.

    Returns:
        float32 [T, 2, H/2], cosines and sines.
    """
    return rope.rotation(config.rope, config.head_dim, positions)


def pre_attention(
    config: LlamaConfig, layer: LayerWeights, x: jax.Array, turn: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """First half of a layer: norm, QKV, RoPE.

    Args:
        layer: one entry of `Weights.layers`.
        x: float32 [T, D], the residual stream.
        turn: float32 [T, 2, H/2], of `rotation`.

    Returns:
        q [T, N, H] (unscaled), k [T, K, H], v [T, K, H] in the dtype of the weights.
    """
    return _merge(config, "layer", layer).pre_attention(x, turn)


def post_attention(config: LlamaConfig, layer: LayerWeights, x: jax.Array, attention: jax.Array) -> jax.Array:
    """Second half of a layer: output projection, residual, norm, feed-forward, residual.

    Args:
        layer: one entry of `Weights.layers`.
        x: float32 [T, D], what went into `pre_attention`.
        attention: [T, N, H], any float dtype.

    Returns:
        x, float32 [T, D], for the next layer.
    """
    return _merge(config, "layer", layer).post_attention(x, attention)


def logits(config: LlamaConfig, weights: Weights, x: jax.Array) -> jax.Array:
    """Final norm and head: x, float32 [T, D], to float32 [T, V]."""
    normed = _merge(config, "norm", weights.norm)(x)
    if weights.head is None:
        return _merge(config, "embed", weights.embed).attend(normed)
    return _merge(config, "head", weights.head)(normed)
