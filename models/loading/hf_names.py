"""How `Weights` correspond to the tensors of a Hugging Face checkpoint: names, shapes and fused matrices.

Hugging Face matrices are [out, in]; ours are [in, out] with those that read the same input side by side. The one
function `assemble` builds `Weights` from named tensors, whether they come from files or from a live parameter tree.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...files.bounded_json import cut, listed
from ..config import LlamaConfig
from ..llama import LayerWeights, Weights

EMBED = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}

Shape = tuple[int, ...]


def checkpoint_shapes(config: LlamaConfig) -> dict[str, Shape]:
    """Return every tensor a Hugging Face checkpoint of this configuration holds, with its shape."""
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    linears = {
        "self_attn.q_proj": (config.query_size, d, config.attention_bias),
        "self_attn.k_proj": (config.kv_size, d, config.attention_bias),
        "self_attn.v_proj": (config.kv_size, d, config.attention_bias),
        "self_attn.o_proj": (d, config.query_size, config.attention_bias),
        "mlp.gate_proj": (f, d, config.mlp_bias),
        "mlp.up_proj": (f, d, config.mlp_bias),
        "mlp.down_proj": (d, f, config.mlp_bias),
    }
    shapes: dict[str, Shape] = {EMBED: (v, d), FINAL_NORM: (d,)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = (v, d)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for norm in NORMS.values():
            shapes[f"{prefix}.{norm}.weight"] = (d,)
        for name, (size_out, size_in, bias) in linears.items():
            shapes[f"{prefix}.{name}.weight"] = (size_out, size_in)
            if bias:
                shapes[f"{prefix}.{name}.bias"] = (size_out,)
    return shapes


def tensor_problems(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """Compare names and shapes; return one line for the missing, one for the extra, and one a misshapen tensor."""
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing: {listing(cut(name, 80) for name in sorted(missing))}")
    if extra := [name for name in found if name not in expected]:
        problems.append(f"not part of this model: {listing(cut(name, 80) for name in sorted(extra))}")
    problems += [
        f"{name} has shape {list(found[name])}, needs {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    return problems


def listing(items: Iterable[str], between: str = ", ") -> str:
    """Join the first of names or problems for an error message, so that it stays below a screen."""
    return listed(list(items), between, most=8, longest=800)


def assemble(
    config: LlamaConfig,
    table: Callable[[str], Any],
    vector: Callable[[tuple[str, ...]], Any],
    kernel: Callable[[tuple[str, ...]], Any],
) -> Weights:
    """Build `Weights` from Hugging Face tensors, one of ours at a time.

    Args:
        table: from a name, an array kept as it is.
        vector: from names, their vectors joined.
        kernel: from names, their [out, in] matrices transposed and joined into one [in, out].
    """

    def layer(index: int) -> LayerWeights:
        prefix = f"model.layers.{index}"
        parts: LayerWeights = {
            ours: {"scale": vector((f"{prefix}.{theirs}.weight",))} for ours, theirs in NORMS.items()
        }
        for ours, theirs in LINEARS.items():
            bias = config.mlp_bias if theirs[0].startswith("mlp") else config.attention_bias
            parts[ours] = {"kernel": kernel(tuple(f"{prefix}.{name}.weight" for name in theirs))}
            if bias:
                parts[ours]["bias"] = vector(tuple(f"{prefix}.{name}.bias" for name in theirs))
        return parts

    return Weights(
        embed={"table": table(EMBED)},
        layers=tuple(layer(index) for index in range(config.num_hidden_layers)),
        norm={"scale": vector((FINAL_NORM,))},
        head=None if config.tie_word_embeddings else {"kernel": kernel((HEAD,))},
    )


def join_vectors(vectors: tuple[Any, ...], dtype: np.dtype) -> Any:
    """Join [out] vectors, inside or outside of a trace."""
    return jnp.concatenate([vector.astype(dtype) for vector in vectors])


def join_kernels(matrices: tuple[Any, ...], dtype: np.dtype) -> Any:
    """Turn [out, in] matrices into one [in, sum of out], inside or outside of a trace."""
    return jnp.concatenate([matrix.astype(dtype).T for matrix in matrices], axis=1)
