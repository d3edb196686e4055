"""Bandwidth of moving whole pages in and out of the host cache, beside that of reading memory."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..host_offload.cache import read_pages, write_pages
from .host_attention import PAGE_SIZE, random_pool, stream_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class PagesBenchmark:
    """What to measure: `pages` pages of [K, 2, 64, H] at random places of a pool, moved at once, `repeats` times.

    Raises:
        ValueError: a size is below 1, or the pool has not so many pages.
    """

    kv_heads: int = 8
    width: int = 128
    dtype: str = "bfloat16"
    pages: int = 256
    repeats: int = 15
    pool_bytes: int = 512 << 20

    def __post_init__(self):
        for name in ("kv_heads", "width", "pages", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.pages > self.pool_pages:
            raise ValueError(f"pages is {self.pages}, the pool has {self.pool_pages}: make pool_bytes larger")

    @property
    def pool_pages(self) -> int:
        """Pages that the pool holds: the most that can be moved at once."""
        return self.pool_bytes // (self.kv_heads * 2 * PAGE_SIZE * self.width * jnp.dtype(self.dtype).itemsize)


def run(benchmark: PagesBenchmark) -> Iterator[dict[str, Any]]:
    """Measure and yield one row per move: pages read into new memory, read into given memory, and written.

    Bytes are counted once, though each is read and written. Streaming reads of the pool are taken in turn with the
    moves; rates are medians.
    """
    pool = random_pool(benchmark.pool_bytes, benchmark.kv_heads, benchmark.width, benchmark.dtype)
    read, read_into = jax.jit(read_pages), jax.jit(read_pages, donate_argnums=2)
    write = jax.jit(write_pages, donate_argnums=0)
    rng = np.random.default_rng(0)
    tiles = read(pool, jnp.arange(benchmark.pages, dtype=jnp.int32))
    rates: dict[str, list[float]] = {"read": [], "read into given memory": [], "write": [], "stream": []}

    def timed(name: str, move: Callable[..., jax.Array], *arguments: jax.Array) -> jax.Array:
        start = time.perf_counter()
        result = move(*arguments).block_until_ready()
        rates[name].append(tiles.nbytes / (time.perf_counter() - start) / 1e9)
        return result

    for _ in range(benchmark.repeats + 1):
        ids = jnp.asarray(rng.permutation(len(pool))[: benchmark.pages].astype(np.int32))
        rates["stream"].append(stream_rate(pool))
        timed("read", read, pool, ids)
        tiles = timed("read into given memory", read_into, pool, ids, tiles)
        pool = timed("write", write, pool, ids, tiles)
    for name in ("read", "read into given memory", "write"):
        yield {
            "operation": name,
            "pages": benchmark.pages,
            "page_bytes": tiles.nbytes // benchmark.pages,
            # The first of each compiles.
            "gb_per_s": statistics.median(rates[name][1:]),
            "stream_gb_per_s": statistics.median(rates["stream"][1:]),
        }
