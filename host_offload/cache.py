"""The host's KV pages as JAX arrays on the CPU backend, one array per layer."""

import ctypes
import dataclasses
import mmap
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import native_library, plain_writes
from .memory import available_memory
from .validation import FLOAT_TYPES, PAGE_SIZES, check_array, check_pages, whole_number

MADV_COLLAPSE = 25
HUGE_PAGE_BYTES = 2 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostKVConfig:
    """Shape of a host KV cache; L layers of pages [K, 2, S, H].

    Raises:
        ValueError, TypeError: a size below 1, a page size other than 16, 32, 64 or 128, a type that is no KV type.
    """

    num_layers: int
    num_kv_heads: int
    head_width: int
    page_size: int = 64
    dtype: jax.typing.DTypeLike = jnp.bfloat16

    def __post_init__(self):
        for name in ("num_layers", "num_kv_heads", "head_width"):
            whole_number(name, getattr(self, name))
        if whole_number("page_size", self.page_size) not in PAGE_SIZES:
            raise ValueError(f"page_size is {self.page_size}, allowed are {PAGE_SIZES}")
        if not _is_float_type(self.dtype):
            raise TypeError(f"dtype is {self.dtype!r}, allowed are float32, bfloat16 and float16")

    @property
    def layer_page_bytes(self) -> int:
        """Bytes of one page in one layer."""
        return self.num_kv_heads * 2 * self.page_size * self.head_width * jnp.dtype(self.dtype).itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers: what one page id stands for."""
        return self.num_layers * self.layer_page_bytes


def _is_float_type(dtype: Any) -> bool:
    try:
        return dtype is not None and jnp.dtype(dtype) in FLOAT_TYPES
    except TypeError:
        return False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class HostKVCache:
    """KV pages in host memory: for each of L layers an array [P, K, 2, S, H] on a CPU device.

    One array per layer, so that each layer can be donated, updated in place and returned by itself while another
    thread moves pages of a different layer.
    """

    layers: tuple[jax.Array, ...]

    def __post_init__(self):
        # JAX rebuilds the cache with things that are no layers.
        if isinstance(self.layers, tuple) and not self.layers:
            raise ValueError("layers is (), it must hold the array of at least one layer")

    @property
    def num_pages(self) -> int:
        """Pages that a page id can name; each exists in every layer."""
        return self.layers[0].shape[0]


def allocate(config: HostKVConfig, budget_bytes: int, device: jax.Device | None = None) -> HostKVCache:
    """Allocate as many pages as fit in a budget, zeroed and backed by huge memory pages where the system allows it.

    Args:
        config: shape of the cache.
        budget_bytes: bytes for all layers together.
        device: a CPU device; the first if None.

    Raises:
        TypeError: the budget is no whole number of bytes, or the device no device.
        ValueError: the budget is below one page, or the device is no CPU.
        MemoryError: the machine does not have the memory, or this process may not have it. Nothing has been
            allocated then.
    """
    target = jax.devices("cpu")[0] if device is None else device
    if not isinstance(target, jax.Device):
        raise TypeError(f"device is {target!r}, it must be a CPU device of JAX, as jax.devices('cpu')[0], or None")
    if target.platform != "cpu":
        raise ValueError(f"host pages need a CPU device, not {target}")
    pages = whole_number("budget_bytes", budget_bytes, 0, sys.maxsize) // config.page_bytes
    if pages < 1:
        raise ValueError(f"a budget of {budget_bytes} bytes is less than one page of {config.page_bytes} bytes")
    needed, available = pages * config.page_bytes, available_memory()
    if needed > available:
        raise MemoryError(f"a host KV cache of {needed} bytes was asked for, {available} bytes are available")
    shape = (pages, config.num_kv_heads, 2, config.page_size, config.head_width)
    # Committed to the device, or programs would take them along to JAX's default device.
    layers = tuple(jnp.zeros(shape, config.dtype, device=target) for _ in range(config.num_layers))
    for layer in jax.block_until_ready(layers):
        advise_huge_pages(layer)
    return HostKVCache(layers=layers)


def advise_huge_pages(array: jax.Array) -> bool:
    """Ask the system to back an array's memory with huge pages at once; return whether it did.

    A matter of speed alone (streaming reads ran 10-15 % faster on some machines), so a refusal is no error.
    """
    begin = -(-array.unsafe_buffer_pointer() // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    end = (array.unsafe_buffer_pointer() + array.nbytes) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None or end <= begin or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise(begin, end - begin, mmap.MADV_HUGEPAGE) == 0 and madvise(begin, end - begin, MADV_COLLAPSE) == 0


def read_pages(kv: jax.Array, pages: jax.Array, into: jax.Array | None = None) -> jax.Array:
    """Gather pages of one layer into one contiguous array, ready for a single copy to the device.

    Args:
        kv: one layer [P, K, 2, S, H].
        pages: int32 [M]; negative ids give zeros, so that M can be a fixed bucket. Ids from P on make the native
            kernel raise; plain JAX, which cannot look at them, gives zeros.
        into: an array like the result, whose memory is used for it: donate it to the jitted caller. A new result's
            memory has to be cleared by the system page by page before it can be written, which takes several times as
            long as the copy.

    Under `jax.vmap` the native kernel takes the examples one after the other.

    Returns:
        [M, K, 2, S, H].

    Raises:
        TypeError, ValueError: types or shapes that do not fit, at trace time.
        NotImplementedError: the native kernel is differentiated.
        jax.errors.JaxRuntimeError, ValueError: an id is P or more, with the native library; as `decode_attention`
            raises them.
    """
    check_pages(kv, pages)
    kv, pages = jnp.asarray(kv), jnp.asarray(pages)
    shape = jax.ShapeDtypeStruct((pages.shape[0], *kv.shape[1:]), kv.dtype)
    if into is not None:
        check_array("into", into)
    if into is not None and (into.shape != shape.shape or into.dtype != shape.dtype):
        raise ValueError(
            f"into is {into.dtype}{list(into.shape)}, it must be as the result, {shape.dtype}{list(shape.shape)}"
        )
    if native_library.load() is not None and pages.shape[0] > 0:
        if into is None:
            return _move(native_library.READ_PAGES, shape, aliases={})(kv, pages)
        return _move(native_library.READ_PAGES_INTO, shape, aliases={2: 0})(kv, pages, into)
    return kv.at[jnp.where(pages < 0, kv.shape[0], pages)].get(mode="fill", fill_value=0)


def write_pages(kv: jax.Array, pages: jax.Array, tiles: jax.Array) -> jax.Array:
    """Write whole pages of one layer; in place when `kv` is donated to the jitted caller.

    Args:
        kv: one layer [P, K, 2, S, H].
        pages: int32 [M], no id twice; negative ids drop the tile. Ids from P on make the native kernel raise, before
            anything is written; plain JAX, which cannot look at them, drops the tile. A donated `kv` is gone after an
            error.
        tiles: [M, K, 2, S, H] in the type of `kv`.

    Under `jax.vmap` the native kernel takes the examples one after the other, each with a cache of its own.

    Returns:
        The updated layer.

    Raises:
        Those of `read_pages`.
    """
    check_pages(kv, pages)
    check_array("tiles", tiles)
    if tiles.shape != (pages.shape[0], *kv.shape[1:]) or tiles.dtype != kv.dtype:
        raise ValueError(
            f"tiles are {tiles.dtype}{list(tiles.shape)}, they must be {kv.dtype}{[pages.shape[0], *kv.shape[1:]]}"
        )
    kv, pages = jnp.asarray(kv), jnp.asarray(pages)
    if native_library.load() is not None and pages.shape[0] > 0:
        result = jax.ShapeDtypeStruct(kv.shape, kv.dtype)
        return _move(native_library.WRITE_PAGES, result, aliases={0: 0})(kv, pages, tiles)
    return plain_writes.set_pages(kv, pages, tiles)


def _move(target: str, result: jax.ShapeDtypeStruct, aliases: dict[int, int]) -> Callable[..., jax.Array]:
    return native_library.function(
        target,
        result,
        aliases=aliases,
        no_derivative="native moves of pages cannot be differentiated: index the array instead, as kv[pages]",
    )
