"""Parameter trees as Flax programs hold them: what each array is called there, and how it lies.

The names are those of a flattened tree, joined with dots: tunix's `tunix.models.llama3`, `qwen2` and `qwen3`
(google/tunix), and MaxText's decoder for the Llama family (AI-Hypercomputer/maxtext), whose layers are one array
(`scan_layers`, along axis 1) or apart, and whose queries are kept divided by sqrt(H).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where an array of a program belongs.

    Attributes:
        name: Hugging Face's, with "*" for the layer. It ends in "weight" for a matrix [out, in], a vector or the
            embedding, in "kernel" for a matrix [in, out], either of which may be several axes (heads and their width),
            or in "bias".
        layer_axis: where one array holds all layers, the axis that counts them.
        change: applied to the array of one layer.
    """

    name: str
    layer_axis: int | None = None
    change: Callable[[Any], Any] | None = None


Table = Mapping[str, str | Target]
"""Own names, with "*" for the layer, and the Hugging Face name or `Target` of each."""

_PROJECTIONS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}
_MLP = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_LAYER = "model.layers.*"

TUNIX: Table = {
    "embedder.input_embedding": "model.embed_tokens.weight",
    "final_norm.w": "model.norm.weight",
    "lm_head.w": "lm_head.kernel",
    **{f"layers.*.attn.{name}.w": f"{_LAYER}.{part}.{name}.kernel" for name, part in _PROJECTIONS.items()},
    **{f"layers.*.attn.{name}_bias": f"{_LAYER}.self_attn.{name}_proj.bias" for name in "qkv"},
    **{f"layers.*.attn.{name}_norm.w": f"{_LAYER}.self_attn.{name}_norm.weight" for name in "qk"},
    **{f"layers.*.mlp.{name}.kernel": f"{_LAYER}.mlp.{name}.kernel" for name in _MLP},
    **{f"layers.*.{name}.w": f"{_LAYER}.{name}.weight" for name in _NORMS},
}


def _unscaled(query: Any) -> Any:
    return (query.astype(jnp.float32) * jnp.float32(math.sqrt(query.shape[-1]))).astype(query.dtype)


def _halves(heads: Any) -> Any:
    """Pairs that RoPE turns, from neighbours to halves of the last axis."""
    return jnp.concatenate([heads[..., ::2], heads[..., 1::2]], axis=-1)


def _maxtext(query: Callable[[Any], Any], key: Callable[[Any], Any] | None) -> Table:
    of_layer = {
        "self_attention.query.kernel": ("self_attn.q_proj.kernel", query),
        "self_attention.key.kernel": ("self_attn.k_proj.kernel", key),
        "self_attention.value.kernel": ("self_attn.v_proj.kernel", None),
        "self_attention.out.kernel": ("self_attn.o_proj.kernel", None),
        "mlp.wi_0.kernel": ("mlp.gate_proj.kernel", None),
        "mlp.wi_1.kernel": ("mlp.up_proj.kernel", None),
        "mlp.wo.kernel": ("mlp.down_proj.kernel", None),
        "pre_self_attention_layer_norm.scale": ("input_layernorm.weight", None),
        "post_self_attention_layer_norm.scale": ("post_attention_layernorm.weight", None),
    }
    table: dict[str, str | Target] = {
        "token_embedder.embedding": "model.embed_tokens.weight",
        "decoder.decoder_norm.scale": "model.norm.weight",
        "decoder.logits_dense.kernel": "lm_head.kernel",
    }
    for name, (ours, change) in of_layer.items():
        whole = Target(name=f"{_LAYER}.{ours}", layer_axis=1, change=change)
        table[f"decoder.layers.{name}"] = whole
        table[f"decoder.layers_*.{name}"] = dataclasses.replace(whole, layer_axis=None)
    return table


TABLES: dict[str, Table] = {
    "tunix": TUNIX,
    # Llama 2 and 3, rotated in halves.
    "maxtext": _maxtext(_unscaled, None),
    # Llama 3.1 and later, rotated in pairs of neighbours.
    "maxtext-llama3.1": _maxtext(lambda query: _halves(_unscaled(query)), _halves),
}
"""Tables by name."""
