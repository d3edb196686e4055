"""Weights from a parameter tree that a program already holds: no file, no host copy, usable in a compiled function."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .config import LlamaConfig
from .llama import Weights, abstract_weights
from .naming import HEAD, assemble, checkpoint_shapes, join_kernels, join_vectors, tensor_problems

_DTYPES = tuple(jnp.dtype(name) for name in ("float32", "bfloat16", "float16"))


def weights_from_params(config: LlamaConfig, params: Any, *, dtype: Any) -> Weights:
    """Convert a parameter tree into `Weights`; pure, so that it can be compiled and its argument donated.

    The result has the structure, shapes and dtype of `abstract_weights(config, dtype)` whatever came in, so programs
    compiled for one set of weights accept the next without recompiling.

    Args:
        params: either `Weights`, or a mapping with Hugging Face names and matrices [out, in], flat
            ("model.layers.0.self_attn.q_proj.weight") or nested ({"model": {"layers": [{"self_attn": ...}]}}; layers
            as a list or by number). An "lm_head.weight" beside a tied embedding is left out.
        dtype: float32, bfloat16 or float16.

    Raises:
        ValueError: another dtype, or tensors that are missing, do not belong to the model or have a wrong shape, all
            of them by name.
        TypeError: `params` is neither `Weights` nor a mapping, or a leaf is not an array.
    """
    if jnp.dtype(dtype) not in _DTYPES:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {jnp.dtype(dtype)}")
    if isinstance(params, Weights):
        return _converted(config, params, dtype)
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be Weights or a mapping of named arrays, got {type(params).__name__}")
    named = _flatten(params)
    if config.tie_word_embeddings:
        named.pop(HEAD, None)
    _raise_if(tensor_problems(checkpoint_shapes(config), {name: array.shape for name, array in named.items()}))
    target = jnp.dtype(dtype)
    return assemble(
        config,
        table=lambda name: jnp.asarray(named[name]).astype(target),
        vector=lambda names: join_vectors(tuple(jnp.asarray(named[name]) for name in names), target),
        kernel=lambda names: join_kernels(tuple(jnp.asarray(named[name]) for name in names), target),
    )


def _converted(config: LlamaConfig, weights: Weights, dtype: Any) -> Weights:
    expected, structure = jax.tree.flatten_with_path(abstract_weights(config, dtype))
    found, _ = jax.tree.flatten_with_path(weights)
    shapes = {_name(path): leaf.shape for path, leaf in found}
    _raise_if(tensor_problems({_name(path): leaf.shape for path, leaf in expected}, shapes))
    leaves = [jnp.asarray(leaf).astype(dtype) for _, leaf in found]
    return jax.tree.unflatten(structure, leaves)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _flatten(tree: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, Any]:
    """Join the keys on the way to each array with dots."""
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    named: dict[str, Any] = {}
    for key, value in entries:
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | list | tuple):
            named |= _flatten(value, f"{name}.")
        elif hasattr(value, "shape"):
            named[name] = value
        else:
            raise TypeError(f"params[{name!r}] must be an array, got {type(value).__name__}")
    return named


def _raise_if(problems: list[str]) -> None:
    if problems:
        raise ValueError("params do not fit the model configuration: " + "; ".join(problems))
