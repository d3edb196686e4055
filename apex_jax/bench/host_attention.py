"""Bandwidth of decode attention on this machine, beside the bandwidth of reading memory and beside torch."""

import dataclasses
import functools
import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..host_offload import native_library
from ..host_offload.attention import NATIVE_MAX_WIDTH, NATIVE_WIDTH_UNIT, Implementation, decode_attention
from ..host_offload.cache import advise_huge_pages

SHAPES = ((32, 32, 128), (32, 8, 128), (32, 8, 64), (9, 3, 64))
CASES = {
    "8x2048": (2048,) * 8,
    "64x256": (256,) * 64,
    "1x16384": (16384,),
    # 16 rows of 17 to 4,096 tokens.
    "ragged": tuple(round(17 * (4096 / 17) ** (i / 15)) for i in range(16)),
    "1x64": (64,),
}
# The smallest call, whose time counts: over KV in cache, appending.
SMALLEST = "1x64"
SMALLEST_CALLS = 200
IMPLEMENTATIONS = ("native", "jax", "torch")
DTYPES = ("bfloat16", "float32", "float16")
PAGE_SIZE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionBenchmark:
    """What to measure.

    The pool is read in turn from one end to the other, so it must be several times the last-level cache: a decode step
    finds every layer's KV cold. Implementations are those that are there if None; those that are named must be.

    Raises:
        ValueError: something does not exist, is not installed, or does not fit into the pool.
    """

    implementations: Sequence[str] | None = None
    shapes: Sequence[tuple[int, int, int]] = SHAPES
    cases: Sequence[str] = tuple(CASES)
    dtypes: Sequence[str] = DTYPES
    repeats: int = 9
    pool_bytes: int = 512 << 20
    threads: int | None = None  # of the native kernel; None: all. The streaming read takes all in any case

    def __post_init__(self):
        for name, allowed in (
            *((("implementations", IMPLEMENTATIONS),) if self.implementations is not None else ()),
            ("cases", CASES),
            ("dtypes", DTYPES),
        ):
            unknown = [value for value in getattr(self, name) if value not in allowed]
            if unknown:
                raise ValueError(f"{name} has {unknown}, allowed are {list(allowed)}")
        if self.repeats < 1 or self.pool_bytes < 1 << 20:
            raise ValueError(
                f"repeats is {self.repeats}, pool_bytes {self.pool_bytes}: at least 1 and 1 MiB are needed"
            )
        absent = [name for name in self.implementations or () if not _is_available(name)]
        if absent:
            raise ValueError(f"{', '.join(absent)} cannot be measured, it is not installed here")
        for heads, kv_heads, width in self.shapes:
            if width % NATIVE_WIDTH_UNIT or width > NATIVE_MAX_WIDTH:
                raise ValueError(
                    f"head width {width} of {heads}/{kv_heads}/{width} cannot be compared: the native kernel takes "
                    f"multiples of {NATIVE_WIDTH_UNIT} up to {NATIVE_MAX_WIDTH}"
                )
            for case, dtype in itertools.product(self.cases, self.dtypes):
                page = kv_heads * 2 * PAGE_SIZE * width * jnp.dtype(dtype).itemsize
                needed = page * sum(-(-length // PAGE_SIZE) for length in CASES[case])
                if needed > self.pool_bytes:
                    raise ValueError(
                        f"case {case} of {heads}/{kv_heads}/{width} in {dtype} reads {needed / 1e6:.0f} MB of KV, more "
                        f"than the {self.pool_bytes / 1e6:.0f} MB that are measured on"
                    )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}, it must be at least 1, or None")


def run(benchmark: AttentionBenchmark) -> Iterator[dict[str, Any]]:
    """Measure and yield one row per shape, type, case and implementation that is installed.

    Every timing of attention has a streaming read of the same memory just before it; `fraction_of_stream` is the
    median of the quotients. `max_error` is the largest error against float64 on the same rounded inputs, relative to
    the largest output. Rows of case 1x64, which torch has none of, also have `latency_us`: the median time of a call
    that appends and is waited for. Its KV is in cache, so its GB/s are no matter of memory and its fraction is None.
    """
    for heads, kv_heads, width in benchmark.shapes:
        for dtype in benchmark.dtypes:
            pool = random_pool(benchmark.pool_bytes, kv_heads, width, dtype)
            for case in benchmark.cases:
                if case == SMALLEST:
                    measure = functools.partial(measure_smallest, pool, heads)
                else:
                    measure = functools.partial(_measure, _Problem.make(pool, heads, CASES[case]))
                for name in _measured(benchmark, case):
                    yield {
                        "implementation": name,
                        "shape": f"{heads}/{kv_heads}/{width}",
                        "dtype": dtype,
                        "case": case,
                        "rows": len(CASES[case]),
                        "length": max(CASES[case]),
                        **measure(name, benchmark),
                    }


def row_names(benchmark: AttentionBenchmark) -> list[str]:
    """Return what `run` measures, row by row, for a person who waits."""
    return [
        f"{heads}/{kv_heads}/{width} {dtype} {case} {name}"
        for heads, kv_heads, width in benchmark.shapes
        for dtype in benchmark.dtypes
        for case in benchmark.cases
        for name in _measured(benchmark, case)
    ]


def _measured(benchmark: AttentionBenchmark, case: str) -> list[str]:
    named = benchmark.implementations
    available = [name for name in IMPLEMENTATIONS if _is_available(name)] if named is None else named
    return [name for name in available if (name, case) != ("torch", SMALLEST)]


def print_rows(rows: Iterator[dict[str, Any]], write: Callable[[str], object]) -> None:
    """Write rows as a table, each line as soon as it is measured."""
    write(f"instructions: {native_library.machine_instructions()}, cores: {os.cpu_count()}, jax {jax.__version__}")
    write(f"{'N/K/H':>10} {'dtype':>9} {'case':>8} {'impl':>7} {'GB/s':>7} {'stream':>7} {'fraction':>9} {'error':>9}")
    for row in rows:
        fraction = "-" if row["fraction_of_stream"] is None else f"{row['fraction_of_stream']:.3f}"
        write(
            f"{row['shape']:>10} {row['dtype']:>9} {row['case']:>8} {row['implementation']:>7} {row['gb_per_s']:7.1f} "
            f"{row['stream_gb_per_s']:7.1f} {fraction:>9} {row['max_error']:9.1e}"
            + (f"  {row['latency_us']:.1f} us" if "latency_us" in row else "")
        )


def latency_us(shape: tuple[int, int, int] = SHAPES[-1], repeats: int = 2000) -> float:
    """Return the median time in microseconds of the smallest call: one row, 64 tokens, append included, blocking."""
    heads, kv_heads, width = shape
    pool = random_pool(kv_heads * 2 * PAGE_SIZE * width * 2, kv_heads, width, "bfloat16")
    call = _smallest_call(_Problem.make(pool, heads, CASES[SMALLEST]), "auto", None)
    call()
    return _median_seconds(call, repeats) * 1e6


def _median_seconds(call: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _rates(rates: list[float], streams: list[float]) -> dict[str, float]:
    return {
        "gb_per_s": statistics.median(rates),
        "stream_gb_per_s": statistics.median(streams),
        "fraction_of_stream": statistics.median(rate / stream for rate, stream in zip(rates, streams, strict=True)),
    }


def stream_read_gb_per_s(pool_bytes: int, repeats: int = 5) -> float:
    """Return the median speed of reading memory from one end to the other, with all threads of the CPU backend.

    Args:
        pool_bytes: how much memory; several times the last-level cache.
        repeats: readings.
    """
    pool = random_pool(pool_bytes, 1, 128, "bfloat16")
    stream_rate(pool)
    return statistics.median(stream_rate(pool) for _ in range(repeats))


@functools.cache
def stream_reader() -> Callable[[jax.Array], jax.Array]:
    native_library.load()
    # The checksum has 64 bits, which JAX by default does not: two halves.
    checksum = jax.ShapeDtypeStruct((2,), jnp.uint32)
    return jax.jit(lambda pool: jax.ffi.ffi_call(native_library.READ_STREAM, checksum)(pool))


def _is_available(name: str) -> bool:
    if name == "torch":
        return importlib.util.find_spec("torch") is not None
    return name == "jax" or native_library.load() is not None


def random_pool(pool_bytes: int, kv_heads: int, width: int, dtype: str) -> jax.Array:
    """Return random pages [P, K, 2, S, H] of about so many bytes, on huge memory pages where possible."""
    page = (kv_heads, 2, PAGE_SIZE, width)
    pages = pool_bytes // (int(np.prod(page)) * jnp.dtype(dtype).itemsize)
    make = jax.jit(lambda key: jax.random.normal(key, (pages, *page), jnp.dtype(dtype)))
    pool = jax.block_until_ready(make(jax.random.key(0)))
    advise_huge_pages(pool)
    return pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Problem:
    """One case over a pool that holds it several times: each entry of `tables` reads other pages."""

    pool: jax.Array
    q: jax.Array
    lengths: jax.Array
    tables: list[jax.Array]
    kv_bytes: int

    @staticmethod
    def make(pool: jax.Array, heads: int, lengths: Sequence[int]) -> "_Problem":
        pages = [-(-n // PAGE_SIZE) for n in lengths]
        ids = np.arange(len(pool) // sum(pages) * sum(pages), dtype=np.int32).reshape(-1, sum(pages))
        tables = []
        for layer in ids:
            table = np.zeros((len(lengths), max(pages)), np.int32)
            for row, run_of_ids in enumerate(np.split(layer, np.cumsum(pages)[:-1])):
                table[row, : len(run_of_ids)] = run_of_ids
            tables.append(jnp.asarray(table))
        q = jax.random.normal(jax.random.key(1), (len(lengths), heads, pool.shape[-1]), pool.dtype)
        token_bytes = pool.nbytes // (len(pool) * PAGE_SIZE)
        return _Problem(
            pool=pool,
            q=q,
            lengths=jnp.asarray(lengths, jnp.int32),
            tables=tables,
            kv_bytes=sum(lengths) * token_bytes,
        )


def _measure(problem: _Problem, name: str, benchmark: AttentionBenchmark) -> dict[str, float]:
    implementation = "native" if name == "native" else "jax"
    call = _torch_call(problem) if name == "torch" else _jax_call(problem, implementation, benchmark.threads)
    error = _relative_error(np.asarray(call(0), np.float64), problem)
    # Slow implementations are given fewer bytes, so that the whole run stays short.
    start = time.perf_counter()
    call(1)
    calls = max(1, min(len(problem.tables) - 1, int(0.004 / (time.perf_counter() - start))))
    rates, streams = [], []
    for repeat in range(benchmark.repeats):
        streams.append(stream_rate(problem.pool))
        start = time.perf_counter()
        for i in range(calls):
            call(repeat * calls + i)
        rates.append(calls * problem.kv_bytes / (time.perf_counter() - start) / 1e9)
    return {**_rates(rates, streams), "max_error": error}


def _smallest_call(problem: _Problem, implementation: Implementation, threads: int | None) -> Callable[[], jax.Array]:
    """Return a call that appends, attends and waits; what it appends is what lies there already."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(kv, q, table, lengths, *new_kv):
        return decode_attention(
            q, kv, table, lengths, new_kv=new_kv, implementation=implementation, max_threads=threads
        )

    kv = jnp.array(problem.pool, copy=True)
    key, value = problem.pool[0, None, :, 0, -1], problem.pool[0, None, :, 1, -1]

    def call() -> jax.Array:
        nonlocal kv
        out, _, kv = step(kv, problem.q, problem.tables[0], problem.lengths, key, value)
        return out.block_until_ready()

    return call


def measure_smallest(pool: jax.Array, heads: int, name: str, benchmark: AttentionBenchmark) -> dict[str, float | None]:
    problem = _Problem.make(pool[:1], heads, CASES[SMALLEST])
    call = _smallest_call(problem, "native" if name == "native" else "jax", benchmark.threads)
    error = _relative_error(np.asarray(call(), np.float64), problem)
    seconds, streams = [], []
    for _ in range(benchmark.repeats):
        streams.append(stream_rate(pool))
        seconds.append(_median_seconds(call, SMALLEST_CALLS))
    rates = [problem.kv_bytes / second / 1e9 for second in seconds]
    return {
        **_rates(rates, streams),
        "fraction_of_stream": None,
        "max_error": error,
        "latency_us": statistics.median(seconds) * 1e6,
    }


def stream_rate(pool: jax.Array) -> float:
    """Return the GB/s at which this machine reads `pool` once, all cores together."""
    start = time.perf_counter()
    if native_library.load() is None:
        read_with_numpy(np.asarray(pool).reshape(-1).view(np.uint8))
    else:
        stream_reader()(pool).block_until_ready()
    return pool.nbytes / (time.perf_counter() - start) / 1e9


def read_with_numpy(data: np.ndarray) -> int:
    """Return the largest byte: of numpy's passes over an array the one that keeps up best with memory."""
    # Several pieces a thread, so that a disturbed one is made up for.
    pieces = np.array_split(data, 8 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return max(threads.map(largest, pieces))


def largest(data: np.ndarray) -> int:
    return int(np.maximum.reduce(data))


def _jax_call(problem: _Problem, name: Implementation, threads: int | None) -> Callable[[int], Any]:
    step = jax.jit(lambda q, kv, t, n: decode_attention(q, kv, t, n, implementation=name, max_threads=threads)[0])
    tables = problem.tables
    return lambda i: jax.block_until_ready(step(problem.q, problem.pool, tables[i % len(tables)], problem.lengths))


def _dense(problem: _Problem, layer: int, row: int) -> np.ndarray:
    """Keys and values of one row, [2, K, S, H]."""
    length = int(problem.lengths[row])
    pages = np.asarray(problem.tables[layer])[row, : -(-length // PAGE_SIZE)]
    dense = np.asarray(problem.pool)[pages].transpose(2, 1, 0, 3, 4)
    return dense.reshape(2, dense.shape[1], -1, dense.shape[-1])[:, :, :length]


def _torch_call(problem: _Problem) -> Callable[[int], Any]:
    """Return torch's attention over dense, padded copies of a few layers' keys and values."""
    import torch

    longest, rows = int(problem.lengths.max()), len(problem.lengths)
    dtype = getattr(torch, problem.pool.dtype.name)
    layers = []
    # Dense copies of the whole pool would take its size again; enough layers to overflow the last-level cache will do.
    for layer in range(min(len(problem.tables), max(2, (128 << 20) // problem.kv_bytes))):
        dense = np.zeros((2, rows, problem.pool.shape[1], longest, problem.pool.shape[-1]), np.float32)
        for row in range(rows):
            dense[:, row, :, : int(problem.lengths[row])] = _dense(problem, layer, row)
        layers.append(torch.from_numpy(dense).to(dtype))
    q = torch.from_numpy(np.array(problem.q, np.float32)).to(dtype)[:, :, None]
    mask = None
    if len(set(problem.lengths.tolist())) > 1:
        mask = torch.arange(longest)[None, None, None] < torch.tensor(problem.lengths.tolist())[:, None, None, None]
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=mask, enable_gqa=True)
    return lambda i: attend(q, *layers[i % len(layers)])[:, :, 0].float().numpy()


def _relative_error(out: np.ndarray, problem: _Problem) -> float:
    """Return max |out - exact| / max |exact| over the first layer, exact in float64 from the same inputs."""
    worst = largest = 0.0
    q = np.asarray(problem.q).astype(np.float64)
    group = q.shape[1] // problem.pool.shape[1]
    for row in range(len(q)):
        key, value = _dense(problem, 0, row).astype(np.float64)
        scores = np.einsum("KGH,KSH->KGS", q[row].reshape(-1, group, q.shape[-1]), key) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        exact = np.einsum("KGS,KSH->KGH", weights / weights.sum(-1, keepdims=True), value).reshape(q.shape[1:])
        worst = max(worst, float(np.abs(out[row] - exact).max()))
        largest = max(largest, float(np.abs(exact).max()))
    return worst / largest
