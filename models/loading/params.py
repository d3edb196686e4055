"""Weights from a parameter tree that a program already holds: no file, no host copy, usable in a compiled function."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...files.bounded_json import cut
from ..config import LlamaConfig
from ..llama import Weights, abstract_weights
from .hf_names import HEAD, assemble, checkpoint_shapes, listing, tensor_problems
from .param_names import Given, ParamMapping, checked_array, given_params
from .param_tables import Target

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedParams:
    """A parameter tree that fits a model, not converted yet.

    Attributes:
        config: the model.
        given: the arrays by Hugging Face's names, or by the paths of `Weights` where they came as such.
        structure: of the `Weights` they came as; None where they have Hugging Face's names.
    """

    config: LlamaConfig
    given: Mapping[str, Given]
    structure: Any

    def dtype(self, wanted: Any = "auto") -> jnp.dtype:
        """Return the type of weights made of them; see `params_dtype`."""
        if wanted != "auto":
            return _check_dtype(wanted)
        numbers: Counter[str] = Counter()
        for array in {each.own: each.array for each in self.given.values()}.values():
            numbers[str(array.dtype)] += math.prod(array.shape)
        return _check_dtype(numbers.most_common(1)[0][0])

    def weights(self, dtype: Any, place: Callable[[Any], Any] = jnp.asarray) -> Weights:
        """Convert them.

        Args:
            dtype: float32, bfloat16 or float16.
            place: brings an array to where the weights shall be.
        """
        target = _check_dtype(dtype)
        wholes: dict[str, Any] = {}

        def part(name: str) -> Any:
            each = self.given[name]
            if each.layer is None:
                return each.part(place(each.array))
            if each.own not in wholes:
                wholes[each.own] = place(each.array)
            return each.part(wholes[each.own])

        if self.structure is not None:
            return jax.tree.unflatten(self.structure, [part(name).astype(target) for name in self.given])

        def kernel(name: str, shape: tuple[int, ...]) -> Any:
            matrix = part(name).astype(target)
            return matrix.reshape(shape[::-1]) if self.given[name].kernel else matrix.T

        shapes = checkpoint_shapes(self.config)
        return assemble(
            self.config,
            table=lambda name: part(name).astype(target),
            vector=lambda names: jnp.concatenate([part(name).astype(target).reshape(-1) for name in names]),
            kernel=lambda names: jnp.concatenate([kernel(name, shapes[name]) for name in names], axis=1),
        )


def open_params(config: LlamaConfig, params: Any, mapping: ParamMapping | None = None) -> OpenedParams:
    """Compare the names, shapes and kinds of number of a parameter tree with what the model needs.

    Arguments and errors are those of `weights_from_params`.
    """
    if not isinstance(config, LlamaConfig):
        raise TypeError(
            f"config must be a LlamaConfig, got {type(config).__name__}; LlamaConfig.from_hf reads the mapping of a "
            "config.json, or transformers' object of it"
        )
    if isinstance(params, Weights):
        if mapping is not None:
            raise TypeError("mapping is for names of a program's own; Weights have none")
        expected = {_name(path): leaf.shape for path, leaf in _paths(abstract_weights(config, "float32"))}
        given = {_name(path): _as_it_is(_name(path), leaf) for path, leaf in _paths(params)}
    else:
        expected = checkpoint_shapes(config)
        given = given_params(params, mapping, config.num_hidden_layers)
        if config.tie_word_embeddings:
            given.pop(HEAD, None)
    if problems := _problems(expected, given):
        raise ValueError(cut("params do not fit the model configuration: " + listing(problems, "; "), 1900))
    return OpenedParams(
        config=config, given=given, structure=jax.tree.structure(params) if isinstance(params, Weights) else None
    )


def weights_from_params(
    config: LlamaConfig, params: Any, *, dtype: Any, mapping: ParamMapping | None = None
) -> Weights:
    """Convert a parameter tree into `Weights`; pure, so that it can be compiled and its argument donated.

    The result has the structure, shapes and dtype of `abstract_weights(config, dtype)` whatever came in, so programs
    compiled for one set of weights accept the next without recompiling.

    Args:
        params: `Weights`, or a parameter tree: a mapping with Hugging Face's names, flat
            ("model.layers.0.self_attn.q_proj.weight") or nested ({"model": {"layers": [{"self_attn": ...}]}}; layers
            as a list or by number), an `nnx.Module` or `nnx.State`, or linen's variables; leaves are arrays or Flax
            variables. Matrices are [out, in] under "weight" and [in, out] under "kernel". An "lm_head" beside a tied
            embedding is left out.
        dtype: float32, bfloat16 or float16.
        mapping: what the arrays are, where their names are others: "tunix", "maxtext" (Llama 2 and 3),
            "maxtext-llama3.1" (3.1 and later), a table from own names to Hugging Face's ("*" stands for the layer:
            {"blocks.*.wq": "model.layers.*.self_attn.q_proj.kernel"}) or to a `Target`, or a function from {own name:
            array} to a mapping with Hugging Face's names.

    Raises:
        ValueError: another dtype, or tensors that are missing, do not belong to the model, have a wrong shape or do not
            hold floating-point numbers, the first of them by name.
        TypeError: `config` is no `LlamaConfig`, `params` no such tree, or a leaf not an array.
    """
    return open_params(config, params, mapping).weights(dtype)


def params_dtype(config: LlamaConfig, params: Any, *, dtype: Any = "auto") -> jnp.dtype:
    """Return the type that weights made of a parameter tree will have.

    Args:
        config, params: as in `weights_from_params`.
        dtype: "auto" takes the type that most of the numbers have.

    Raises:
        ValueError, TypeError: as in `weights_from_params`.
    """
    return open_params(config, params).dtype(dtype)


def _problems(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Given]) -> list[str]:
    found, problems = {}, []
    for name, each in given.items():
        if name not in expected:
            found[each.own] = each.shape
            continue
        found[name] = expected[name]
        own = name if each.own == name else f"{each.own} ({name})"
        if not each.fits(expected[name]):
            needed = list(expected[name][:: -1 if each.kernel else 1])
            problems.append(f"{own} has shape {list(each.shape)}, needs {needed}")
        if not jnp.issubdtype(each.array.dtype, jnp.floating):
            problems.append(f"{own} holds {each.array.dtype}, needs floating-point numbers")
    return tensor_problems(expected, found) + problems


def _as_it_is(name: str, leaf: Any) -> Given:
    return Given(own=name, array=checked_array(name, leaf), kernel=False, layer=None, target=Target(name=name))


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
