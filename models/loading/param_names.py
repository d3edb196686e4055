"""Arrays of a parameter tree by Hugging Face's names, whoever made the tree: mappings, Flax modules and states."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core.meta import AxisMetadata

from ...files.bounded_json import shown
from .hf_names import Shape
from .param_tables import TABLES, Table, Target

ParamMapping = str | Table | Callable[[dict[str, Any]], Mapping[str, Any]]
"""The name of a table, a table of one's own, or a function from {own name: array} to a mapping with Hugging Face's
names."""

_NO_PARAMETERS = (nnx.RngState, nnx.BatchStat, nnx.Cache, nnx.Intermediate)
_LEAVES = {"scale": "weight", "embedding": "weight"}
_INSIDE = re.compile(r"(?:embed_tokens|layers|norm)[._]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """An array of a program that a tensor is made of.

    Attributes:
        own: what it is called there.
        array: as it is there.
        kernel: it is [in, out], either of which may be several axes, and not [out, in].
        layer: its layer's index along `target.layer_axis`, where it holds all of them.
        target: see `Target`.
    """

    own: str
    array: Any
    kernel: bool
    layer: int | None
    target: Target

    @property
    def shape(self) -> Shape:
        """Of the layer's part."""
        axis = self.target.layer_axis
        if self.layer is None or axis is None:
            return tuple(self.array.shape)
        return tuple(size for index, size in enumerate(self.array.shape) if index != axis)

    def fits(self, expected: Shape) -> bool:
        """Whether a tensor of a shape can be made of it; matrices' are [out, in]."""
        shape = self.shape
        if self.kernel:
            return any((math.prod(shape[i:]), math.prod(shape[:i])) == expected for i in range(1, len(shape)))
        return shape == expected or (len(expected) == 1 and math.prod(shape) == expected[0])

    def part(self, whole: Any) -> Any:
        """Return its layer's part of `array`, or of a copy of it, changed as the target says."""
        if self.layer is not None:
            whole = jnp.take(whole, self.layer, axis=self.target.layer_axis)
        return whole if self.target.change is None else self.target.change(whole)


def given_params(params: Any, mapping: ParamMapping | None, num_layers: int) -> dict[str, Given]:
    """Return the arrays of a parameter tree by Hugging Face's names.

    Args:
        params: a mapping, flat or nested, an `nnx.Module` or an `nnx.State`; leaves are arrays, Flax variables or boxed
            arrays. What stands under "params" is taken, as in linen's variables.
        mapping: see `ParamMapping`; None where the names are Hugging Face's. Leaves may end in `kernel`, `scale` and
            `embedding` there, layers be called `layers_0`, and "model." be left out.
        num_layers: of the model.

    Raises:
        TypeError: a tree, a leaf or a mapping of another kind.
        ValueError: there is no such table, two arrays have one name, or an array holds another number of layers.
    """
    named = _arrays(_flatten(_tree(params)))
    if callable(mapping):
        changed = mapping(named)
        if not isinstance(changed, Mapping):
            raise TypeError(f"mapping must return a mapping of named arrays, got {type(changed).__name__}")
        named, table = _arrays(_flatten(changed)), {}
    else:
        table = _table(mapping)
    given: dict[str, Given] = {}
    for own, array in named.items():
        for found in _targets(own, array, table, num_layers):
            name, kernel = _hf_name(found.target.name)
            if name in given:
                raise ValueError(f"params {shown(given[name].own)} and {shown(own)} are both {name}")
            given[name] = dataclasses.replace(found, kernel=kernel)
    return given


def _table(mapping: Any) -> Table:
    if isinstance(mapping, str):
        if mapping not in TABLES:
            raise ValueError(f"mapping must be one of {', '.join(TABLES)}, a table or a function, got {shown(mapping)}")
        return TABLES[mapping]
    if mapping is not None and not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must be a name, a table or a function, got {type(mapping).__name__}")
    for target in (mapping or {}).values():
        if not isinstance(target, str | Target):
            raise TypeError(f"a mapping's values must be Hugging Face names or Targets, got {shown(target)}")
    return mapping or {}


def _targets(own: str, array: Any, table: Table, num_layers: int) -> Iterator[Given]:
    """Yield what an array is, once for each layer that it holds."""
    for pattern, entry in table.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), own)
        if match is None:
            continue
        target = Target(name=entry) if isinstance(entry, str) else entry
        axis = target.layer_axis
        if axis is None:
            parts: list[tuple[str, int | None]] = [(match[1] if match.groups() else "*", None)]
        elif len(array.shape) <= axis or array.shape[axis] != num_layers:
            raise ValueError(
                f"params[{shown(own)}] has shape {list(array.shape)}, needs {num_layers} layers along axis {axis}"
            )
        else:
            parts = [(str(layer), layer) for layer in range(num_layers)]
        for number, layer in parts:
            named = dataclasses.replace(target, name=target.name.replace("*", number))
            yield Given(own=own, array=array, kernel=False, layer=layer, target=named)
        return
    yield Given(own=own, array=array, kernel=False, layer=None, target=Target(name=own))


def _hf_name(name: str) -> tuple[str, bool]:
    """Return Hugging Face's name of an array, and whether it is a kernel."""
    if _INSIDE.match(name):
        name = f"model.{name}"
    name = re.sub(r"^model\.layers_(\d+)\.", r"model.layers.\1.", name)
    stem, _, leaf = name.rpartition(".")
    kernel = leaf == "kernel"
    return f"{stem}.{'weight' if kernel else _LEAVES.get(leaf, leaf)}", kernel


def _tree(params: Any) -> Mapping[Any, Any]:
    if isinstance(params, nnx.Module):
        params = nnx.state(params)
    if not isinstance(params, Mapping):
        raise TypeError(
            "params must be Weights, an nnx.Module, an nnx.State or a mapping of named arrays, "
            f"got {type(params).__name__}"
        )
    # Linen's variables, train states, and a model around a model.
    while len(params) and isinstance(inner := params.get("params", params.get("base")), Mapping):
        params = inner
    return params


def _flatten(tree: Mapping[Any, Any] | Sequence[Any], prefix: str = "") -> dict[str, Any]:
    """Join the keys on the way to each leaf with dots."""
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    named: dict[str, Any] = {}
    for key, value in entries:
        name = f"{prefix}{key}"
        if isinstance(value, nnx.Module):
            value = nnx.state(value)
        if isinstance(value, Mapping | list | tuple):
            named |= _flatten(value, f"{name}.")
        elif not isinstance(value, _NO_PARAMETERS):
            named[name] = value
    return named


def _arrays(named: dict[str, Any]) -> dict[str, Any]:
    return {name: checked_array(name, leaf) for name, leaf in named.items()}


def checked_array(name: str, leaf: Any) -> Any:
    """Return the array of a leaf, out of what Flax has put it into.

    Raises:
        TypeError: it is none.
    """
    value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
    if isinstance(value, AxisMetadata):
        value = value.unbox()
    if not isinstance(value, np.ndarray | jax.Array):
        raise TypeError(f"params[{shown(name)}] must be an array of JAX or numpy, got {type(value).__name__}")
    return value
