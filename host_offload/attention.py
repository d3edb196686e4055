"""Decode attention over paged KV on the CPU backend: one query token a row."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from . import native_library, reference
from .validation import check_attention, check_name, check_options

Implementation = Literal["auto", "native", "jax"]
Instructions = Literal["auto", "portable", "avx2", "avx512", "avx512_bf16"]
IMPLEMENTATIONS = ("auto", "native", "jax")

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

    Works under `jax.jit` on the CPU backend, and under `jax.vmap`, where the native kernel takes the examples one after
    the other: give it rows instead. Donate `kv` to the jitted function when `new_kv` is given: then the append
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
        new_kv: keys and values [B, K, H] of the last token of each row, in the type of `kv`. The page that a row
            appends to must be its own: no other row may write to it or read it in the same call. That is not checked;
            the native kernel appends while other rows are read.
        scale: multiplies q.k; 0 or from 1e-30 to 1e30 in size; 1 / sqrt(H) if None.
        sliding_window: only the last so many tokens are attended to; at most 2**31 - 1.
        logit_softcap: scaled scores x become cap * tanh(x / cap); from 1e-30 to 1e30.
        implementation: "native", "jax" (plain JAX, any head width, any backend), or "auto": native where it was built
            and supports the head width (a multiple of 16 up to 256).
        max_threads: at most so many threads work on the call (native only); all of the CPU backend's if None.
        instructions: upper limit on the instruction set (native only), for comparisons: "portable", "avx2", "avx512",
            "avx512_bf16", or "auto": what the machine has.

    Returns:
        Output float32 [B, N, H], natural log-sum-exp of the scores float32 [B, N], and the cache.

    Raises:
        TypeError, ValueError: types, shapes or options that do not fit, at trace time.
        NotImplementedError: the native kernel is differentiated; plain JAX can be.
        jax.errors.JaxRuntimeError, ValueError: from the native kernel when a length exceeds the page table or a visible
            page id is out of range; nothing has been written then, but a donated cache is gone. It comes from the call
            or, where JAX returns before the program has run, from what first waits for a result. Which of the two it is
            depends on how JAX dispatches the program (a jitted function that ran before mostly raises ValueError):
            expect both. The "jax" implementation gives NaN for such a row.
    """
    check_attention(q, kv, page_table, lengths, new_kv)
    check_options(scale, sliding_window, logit_softcap, max_threads)
    check_name("instructions", instructions, ("auto", *native_library.INSTRUCTIONS))
    native = _use_native(implementation, q.shape[2])
    q, kv, page_table, lengths = map(jnp.asarray, (q, kv, page_table, lengths))
    scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else scale
    rows, heads, _ = q.shape
    if rows == 0:
        return jnp.zeros(q.shape, jnp.float32), jnp.zeros((rows, heads), jnp.float32), kv
    if native:
        target = native_library.ATTEND if new_kv is None else native_library.APPEND_ATTEND
        attributes = _attributes(scale, sliding_window, logit_softcap, max_threads, instructions)
        return _native(target, (rows, heads, q.shape[2]), attributes, q, kv, page_table, lengths, *(new_kv or ()))
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
    check_attention(qkv, kv, page_table, lengths, packed=True)
    check_options(scale, sliding_window, logit_softcap, max_threads)
    rows, width, kv_heads = qkv.shape[0], qkv.shape[2], kv.shape[1]
    heads = qkv.shape[1] - 2 * kv_heads
    native = _use_native(implementation, width)
    qkv, kv = jnp.asarray(qkv), jnp.asarray(kv)
    if rows > 0 and native:
        scale = 1.0 / math.sqrt(width) if scale is None else scale
        attributes = _attributes(scale, sliding_window, logit_softcap, max_threads, "auto")
        shape = (rows, heads, width)
        return _native(native_library.PACKED_ATTEND, shape, attributes, qkv, kv, page_table, lengths)
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


def _native(
    target: str, shape: tuple[int, int, int], attributes: dict[str, np.generic], q, kv, *others
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Call the native kernel for an output of this shape; where it appends, the cache's memory is its third result."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:2], jnp.float32)]
    appends = target != native_library.ATTEND
    call = native_library.function(
        target,
        [*results, jax.ShapeDtypeStruct(kv.shape, kv.dtype)] if appends else results,
        aliases={1: 2} if appends else {},
        no_derivative="the native decode attention cannot be differentiated: pass implementation='jax', which can",
        **attributes,
    )
    out, lse, *updated = call(q, kv, *others)
    return out, lse, updated[0] if appends else kv


def _attributes(scale, sliding_window, logit_softcap, max_threads, instructions) -> dict[str, np.generic]:
    levels = native_library.INSTRUCTIONS
    limit = len(levels) if instructions == "auto" else levels.index(instructions)
    return {
        "scale": np.float32(scale),
        "softcap": np.float32(logit_softcap or 0.0),
        "window": np.int64(sliding_window or 0),
        "max_workers": np.int64(max_threads or 0),
        "instructions": np.int64(limit),
    }


def _use_native(implementation: str, width: int) -> bool:
    check_name("implementation", implementation, IMPLEMENTATIONS)
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
            raise ValueError(
                "implementation is 'native', but apex_jax runs without its native host attention: "
                f"{native_library.absence()}"
            )
        return True
    return supported and native_library.load() is not None
