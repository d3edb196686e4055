"""Random weights of any configuration, for tests and for timing models whose checkpoint is not at hand."""

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from .config import LlamaConfig
from .llama import Weights, abstract_weights


def random_weights(config: LlamaConfig, seed: int, dtype: Any, *, device: Any = None) -> Weights:
    """Draw weights that keep activations and logits of order 1.

    Matrices are uniform with variance 1 / fan-in, norms 1, biases uniform within 0.1. Tensors are drawn one by one on
    the device, so that nothing but the finished ones takes memory. A tensor's numbers depend on the seed and on its
    name alone: layer 0 is the same whatever the number of layers, and so is every dtype up to rounding.

    Args:
        seed: any integer.
        dtype: float32, bfloat16 or float16.
        device: the `jax.Device` where the weights live; JAX's default where None.
    """
    paths, structure = jax.tree.flatten_with_path(abstract_weights(config, dtype))
    with jax.default_device(device):
        leaves = []
        for path, leaf in paths:
            name = jax.tree_util.keystr(path)
            start = zlib.crc32(f"{seed} {name}".encode())
            drawn = _draw(jnp.uint32(start), _limit(path[-1].key, leaf.shape), leaf.shape, leaf.dtype)
            # Whoever waits for all of them at once cannot be interrupted meanwhile.
            leaves.append(jax.block_until_ready(drawn))
    return jax.tree.unflatten(structure, leaves)


def _limit(name: str, shape: tuple[int, ...]) -> float | None:
    """Return the bound of the uniform draw, or None for a constant 1. The table's fan-in as a head is D, its width."""
    if name == "scale":
        return None
    if name == "bias":
        return 0.1
    return math.sqrt(3 / (shape[1] if name == "table" else shape[0]))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(start: jax.Array, limit: float | None, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Hash each element's index (MurmurHash3's finaliser): many times faster than `jax.random` on a CPU."""
    if limit is None:
        return jnp.ones(shape, dtype)
    word = jax.lax.iota(jnp.uint32, math.prod(shape)) * jnp.uint32(0x9E3779B9)
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B) ^ start
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    word = word ^ (word >> 16)
    centred = (word >> 8).astype(jnp.float32) - jnp.float32(2**23)
    return (centred * jnp.float32(limit / 2**23)).astype(dtype).reshape(shape)
