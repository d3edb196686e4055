"""Decode attention over paged KV on the CPU backend: one query token a row."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from . import native_library, reference

Implementation = Literal["auto", "native", "jax"]
Instructions = Literal["auto", "portable", "avx2", "avx512", "avx512_bf16"]

FLOAT_TYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
PAGE_SIZES = (16, 32, 64, 128)
# The narrowest vectors of the kernel hold this many columns at a time.
NATIVE_WIDTH_UNIT = 16
NATIVE_MAX_WIDTH = 256


def decode_attention(
    q: jax.Array,
    kv: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    new_kv: tuple[jax.Array, jax.Array] | None = None,
    scale: float | None = None,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    implementation: Implementation = "auto",
    max_threads: int | None = None,
    instructions: Instructions = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attend from one query token of each row to that row's pages, after appending its new key and value if given.

    Works under `jax.jit` on the CPU backend. Donate `kv` to the jitted function when `new_kv` is given: then the append
    happens in place and the returned cache is the same memory; without donation XLA copies the cache first.

    Arithmetic follows the type of `q`: every product, weight and sum is float32, whatever the type of the cache, unless
    both are bfloat16 and the machine multiplies pairs of bfloat16: then softmax weights are rounded to bfloat16 (sums
    are float32). Pass `q` as float32 where that matters. Results
    are float32 always, so that parts can be merged through their log-sum-exp without further rounding.

    Args:
        q: queries [B, N, H], float32, bfloat16 or float16.
        kv: pages [P, K, 2, S, H], keys at index 0 and values at 1; N must be a multiple of K.
        page_table: page ids, int32 [B, W]; token t of row b lives in page page_table[b, t // S] at offset t % S.
            Entries that hold no visible token are not looked at.
        lengths: tokens of each row, the one being decoded included, int32 [B]. 0 marks a padding row: nothing is
            appended, its output is 0 and its log-sum-exp -inf.
        new_kv: keys and values [B, K, H] of the last token of each row, in the type of `kv`. No two rows may write to
            the same place.
        scale: multiplies q.k; 1 / sqrt(H) if None.
        sliding_window: only the last so many tokens are attended to.
        logit_softcap: scaled scores x become cap * tanh(x / cap).
        implementation: "native", "jax" (plain JAX, any head width, any backend), or "auto": native where it was built
            and supports the head width (a multiple of 16 up to 256).
        max_threads: at most so many threads work on the call (native only); all of the CPU backend's if None.
        instructions: upper limit on the instruction set (native only), for comparisons.

    Returns:
        Output float32 [B, N, H], natural log-sum-exp of the scores float32 [B, N], and the cache.

    Raises:
        TypeError, ValueError: types or shapes that do not fit, at trace time.
        jax.errors.JaxRuntimeError: from the native kernel when a length exceeds the page table or a visible page id is
            out of range; nothing has been written then, but a donated cache is gone. JAX makes it a ValueError where it
            runs a program at once. The "jax" implementation gives NaN for such a row.
    """
    _check(q, kv, page_table, lengths, new_kv)
    _check_options(scale, sliding_window, logit_softcap, max_threads)
    scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else scale
    rows, heads, width = q.shape
    if rows == 0:
        return jnp.zeros(q.shape, jnp.float32), jnp.zeros((rows, heads), jnp.float32), kv
    if _use_native(implementation, width):
        attributes = _attributes(scale, sliding_window, logit_softcap, max_threads, instructions)
        return _native(q, kv, page_table, lengths, new_kv, attributes)
    if new_kv is not None:
        kv = reference.append(kv, page_table, lengths, *new_kv)
    out, lse = reference.attend(
        q, kv, page_table, lengths, scale=scale, sliding_window=sliding_window, logit_softcap=logit_softcap
    )
    return out, lse, kv


def decode_attention_packed(
    qkv: jax.Array,
    kv: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    implementation: Implementation = "auto",
    max_threads: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`decode_attention` with the append, for queries, new keys and new values that arrive as one array.

    The native kernel reads them where they lie: nothing is sliced or converted beforehand. New keys and values are
    rounded to the type of `kv` as they are appended.

    Args:
        qkv: N query heads, K new keys and K new values of each row, [B, N + 2K, H], float32, bfloat16 or float16.

    The other arguments, the results and the errors are those of `decode_attention`.
    """
    if qkv.ndim != 3 or kv.ndim != 5 or qkv.shape[1] <= 2 * kv.shape[1]:
        raise ValueError(
            f"qkv and kv have shapes {qkv.shape} and {kv.shape}, they must be [B, N + 2K, H] and [P, K, 2, S, H]"
        )
    rows, width, kv_heads = qkv.shape[0], qkv.shape[2], kv.shape[1]
    heads = qkv.shape[1] - 2 * kv_heads
    _check(jax.ShapeDtypeStruct((rows, heads, width), qkv.dtype), kv, page_table, lengths, None)
    if rows > 0 and _use_native(implementation, width):
        _check_options(scale, sliding_window, logit_softcap, max_threads)
        scale = 1.0 / math.sqrt(width) if scale is None else scale
        attributes = _attributes(scale, sliding_window, logit_softcap, max_threads, "auto")
        call = jax.ffi.ffi_call(
            native_library.PACKED_ATTEND, _results((rows, heads, width), kv), input_output_aliases={1: 2}
        )
        out, lse, kv = call(qkv, kv, page_table, lengths, **attributes)
        return out, lse, kv
    new = tuple(part.astype(kv.dtype) for part in (qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]))
    return decode_attention(
        qkv[:, :heads],
        kv,
        page_table,
        lengths,
        new_kv=(new[0], new[1]),
        scale=scale,
        sliding_window=sliding_window,
        logit_softcap=logit_softcap,
        implementation=implementation,
        max_threads=max_threads,
    )


def native_attention_available(head_dim: int) -> bool:
    """Whether `decode_attention` runs the native kernel for heads of this width when it may choose."""
    return _use_native("auto", head_dim)


def _native(q, kv, page_table, lengths, new_kv, attributes) -> tuple[jax.Array, jax.Array, jax.Array]:
    results = _results(q.shape, kv)
    if new_kv is None:
        out, lse = jax.ffi.ffi_call(native_library.ATTEND, results[:2])(q, kv, page_table, lengths, **attributes)
        return out, lse, kv
    call = jax.ffi.ffi_call(native_library.APPEND_ATTEND, results, input_output_aliases={1: 2})
    out, lse, kv = call(q, kv, page_table, lengths, *new_kv, **attributes)
    return out, lse, kv


def _results(shape: tuple[int, int, int], kv: jax.Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(shape[:2], jnp.float32),
        jax.ShapeDtypeStruct(kv.shape, kv.dtype),
    )


def _attributes(scale, sliding_window, logit_softcap, max_threads, instructions) -> dict[str, np.generic]:
    limit = len(native_library.INSTRUCTIONS) if instructions == "auto" else _instruction_level(instructions)
    return {
        "scale": np.float32(scale),
        "softcap": np.float32(logit_softcap or 0.0),
        "window": np.int64(sliding_window or 0),
        "max_workers": np.int64(max_threads or 0),
        "instructions": np.int64(limit),
    }


def _use_native(implementation: str, width: int) -> bool:
    if implementation not in ("auto", "native", "jax"):
        raise ValueError(f"implementation is {implementation!r}, allowed are 'auto', 'native' and 'jax'")
    if implementation == "jax":
        return False
    supported = width % NATIVE_WIDTH_UNIT == 0 and width <= NATIVE_MAX_WIDTH
    if implementation == "native":
        if not supported:
            raise ValueError(
                f"head width {width} is not supported by the native kernel, allowed are multiples of "
                f"{NATIVE_WIDTH_UNIT} up to {NATIVE_MAX_WIDTH}; implementation='jax' takes any"
            )
        if native_library.load() is None:
            raise ValueError("implementation is 'native', but apex_jax was installed without its native host attention")
        return True
    return supported and native_library.load() is not None


def _instruction_level(instructions: str) -> int:
    if instructions not in native_library.INSTRUCTIONS:
        allowed = ", ".join(map(repr, ("auto", *native_library.INSTRUCTIONS)))
        raise ValueError(f"instructions is {instructions!r}, allowed are {allowed}")
    return native_library.INSTRUCTIONS.index(instructions)


def _check(q, kv, page_table, lengths, new_kv) -> None:
    for name, array in (("q", q), ("kv", kv)):
        if array.dtype not in FLOAT_TYPES:
            raise TypeError(f"{name} has type {array.dtype}, allowed are float32, bfloat16 and float16")
    for name, array in (("page_table", page_table), ("lengths", lengths)):
        if array.dtype != jnp.int32:
            raise TypeError(f"{name} has type {array.dtype}, it must be int32")
    if q.ndim != 3 or kv.ndim != 5 or page_table.ndim != 2:
        raise ValueError(
            f"q, kv and page_table have shapes {q.shape}, {kv.shape} and {page_table.shape}, "
            "they must be [B, N, H], [P, K, 2, S, H] and [B, W]"
        )
    rows, heads, width = q.shape
    pages, kv_heads, two, page_size, kv_width = kv.shape
    if two != 2 or kv_width != width or pages == 0:
        raise ValueError(f"kv has shape {kv.shape}, it must be [P, K, 2, S, {width}] with at least one page")
    if page_size not in PAGE_SIZES:
        raise ValueError(f"the page size of kv is {page_size}, allowed are {PAGE_SIZES}")
    if kv_heads == 0 or heads == 0 or heads % kv_heads != 0:
        raise ValueError(f"q has {heads} heads, which is not a positive multiple of the {kv_heads} heads of kv")
    if page_table.shape[0] != rows or page_table.shape[1] == 0 or lengths.shape != (rows,):
        raise ValueError(
            f"page_table has shape {page_table.shape} and lengths {lengths.shape}, "
            f"they must be [{rows}, W] with W > 0 and [{rows}]"
        )
    for array in new_kv or ():
        if array.dtype != kv.dtype:
            raise TypeError(f"new keys and values have type {array.dtype}, they must have that of kv, {kv.dtype}")
        if array.shape != (rows, kv_heads, width):
            raise ValueError(f"new keys and values have shape {array.shape}, it must be {(rows, kv_heads, width)}")


def _check_options(scale, sliding_window, logit_softcap, max_threads) -> None:
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale is {scale}, it must be finite")
    if logit_softcap is not None and not 0 < logit_softcap < math.inf:
        raise ValueError(f"logit_softcap is {logit_softcap}, it must be positive and finite, or None")
    for name, value in (("sliding_window", sliding_window), ("max_threads", max_threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, it must be at least 1, or None")
