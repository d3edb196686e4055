"""Weights from a parameter tree that a program already holds: no file, no host copy, usable in a compiled function."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config import LlamaConfig
from ..llama import Weights, abstract_weights
from .hf_names import HEAD, assemble, checkpoint_shapes, join_kernels, join_vectors, tensor_problems

DTYPES = ("float32", "bfloat16", "float16")


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
        ValueError: another dtype, or tensors that are missing, do not belong to the model, have a wrong shape or do not
            hold floating-point numbers, all of them by name.
        TypeError: `config` is no `LlamaConfig`, `params` neither `Weights` nor a mapping, or a leaf not an array.
    """
    check_params(config, params)
    _check_dtype(dtype)
    if isinstance(params, Weights):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), params)
    named = _flatten(params)
    target = jnp.dtype(dtype)
    return assemble(
        config,
        table=lambda name: jnp.asarray(named[name]).astype(target),
        vector=lambda names: join_vectors(tuple(jnp.asarray(named[name]) for name in names), target),
        kernel=lambda names: join_kernels(tuple(jnp.asarray(named[name]) for name in names), target),
    )


def params_dtype(config: LlamaConfig, params: Any, *, dtype: Any = "auto") -> jnp.dtype:
    """Return the type that weights made of a parameter tree will have.

    Args:
        config, params: as in `weights_from_params`.
        dtype: "auto" takes the type that most of the numbers have.

    Raises:
        ValueError, TypeError: as in `weights_from_params`.
    """
    check_params(config, params)
    if dtype != "auto":
        return _check_dtype(dtype)
    numbers: Counter[str] = Counter()
    for leaf in jax.tree.leaves(params):
        numbers[str(leaf.dtype)] += math.prod(leaf.shape)
    return _check_dtype(numbers.most_common(1)[0][0])


def check_params(config: LlamaConfig, params: Any) -> None:
    """Compare the names, shapes and kinds of number of a parameter tree with what the model needs.

    Raises:
        ValueError, TypeError: as in `weights_from_params`.
    """
    if not isinstance(config, LlamaConfig):
        raise TypeError(
            f"config must be a LlamaConfig, got {type(config).__name__}; LlamaConfig.from_hf reads the mapping of a "
            "config.json"
        )
    if isinstance(params, Weights):
        expected = {_name(path): leaf.shape for path, leaf in _paths(abstract_weights(config, "float32"))}
        named = _arrays({_name(path): leaf for path, leaf in _paths(params)})
    elif isinstance(params, Mapping):
        expected, named = checkpoint_shapes(config), _arrays(_flatten(params))
        if config.tie_word_embeddings:
            named.pop(HEAD, None)
    else:
        raise TypeError(f"params must be Weights or a mapping of named arrays, got {type(params).__name__}")
    problems = tensor_problems(expected, {name: array.shape for name, array in named.items()})
    problems += [
        f"{name} holds {array.dtype}, needs floating-point numbers"
        for name, array in named.items()
        if not jnp.issubdtype(array.dtype, jnp.floating)
    ]
    if problems:
        raise ValueError("params do not fit the model configuration: " + "; ".join(problems))


def _check_dtype(dtype: Any) -> jnp.dtype:
    try:
        chosen = jnp.dtype(dtype)
    except TypeError:
        chosen = None
    if chosen is None or chosen.name not in DTYPES:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    return chosen


def _paths(weights: Weights) -> list[tuple[Any, Any]]:
    return jax.tree.flatten_with_path(weights)[0]


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _flatten(tree: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, Any]:
    """Join the keys on the way to each leaf with dots."""
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    named: dict[str, Any] = {}
    for key, value in entries:
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | list | tuple):
            named |= _flatten(value, f"{name}.")
        else:
            named[name] = value
    return named


def _arrays(named: dict[str, Any]) -> dict[str, Any]:
    for name, value in named.items():
        if not isinstance(value, np.ndarray | jax.Array):
            raise TypeError(f"params[{name!r}] must be an array of JAX or numpy, got {type(value).__name__}")
    return named
