"""JAX's settings as the engine has them while it works, whatever is in force where it is called.

JAX keeps them for each thread, and most are part of what a compiled program is found by: in a caller's mesh, say, or
with 64 bits, every program would be compiled again and might give other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding


@contextmanager
def own_contexts() -> Iterator[None]:
    """Leave the caller's mesh, device, precision, 64 bits, guards and debug modes while the context is open.

    Raises:
        RuntimeError: JAX is tracing a function.
    """
    refuse_traces()
    with (
        jax.set_mesh(None),
        jax.default_device(None),
        jax.default_matmul_precision(None),
        jax.enable_x64(False),
        jax.transfer_guard("allow"),
        jax.disable_jit(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.check_tracer_leaks(False),
        jax.debug_key_reuse(False),
        jax.threefry_partitionable(True),
        jax.softmax_custom_jvp(False),
        jax.allow_f16_reductions(True),
        jax.auto_pcast(True),
        jax.remove_size_one_mesh_axis_from_type(False),
        # The strictest: nothing here depends on the others.
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield


def refuse_traces() -> None:
    """Let nothing start that JAX would take for a part of a function that it traces.

    Raises:
        RuntimeError: JAX is tracing a function.
    """
    try:
        # What says it in public.
        jax.sharding.get_mesh()
    except ValueError:
        raise RuntimeError(
            "an LLM was called while JAX traces a function (jax.jit, vmap, grad, scan and the like): it runs requests "
            "in Python, which cannot become a part of a compiled program; call it outside of the function"
        ) from None


def default_device() -> jax.Device:
    """Return the device that `jax.default_device` or `jax_default_device` names, or JAX's first."""
    # This thread's; `values` holds what the whole process was told.
    named = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return named if isinstance(named, jax.Device) else jax.local_devices(backend=named)[0]


def placed_on(device: jax.Device) -> Callable[[Any], jax.Array]:
    """Return a function that copies an array to a device, out of whatever mesh it is in."""
    place = SingleDeviceSharding(device)

    def placed(array: Any) -> jax.Array:
        if isinstance(array, Tracer):
            raise TypeError(f"{array} belongs to a function that JAX traced; params must be arrays")
        # Never the caller's own memory, who may donate it or write to it: `may_alias=False` does not see to that for
        # numpy's arrays, nor for one of several copies on a mesh.
        return jnp.copy(jax.device_put(array, place))

    return placed
