"""What the functions of the host tier are given: refused, by name and value, before anything is traced or run."""

import numbers
import operator

import jax
import jax.numpy as jnp
import numpy as np

FLOAT_TYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
PAGE_SIZES = (16, 32, 64, 128)
# Scales and caps are float32, multiplied and divided in float32: within these neither overflows nor vanishes.
LEAST, MOST = 1e-30, 1e30
MOST_WHOLE = 2**31 - 1


def check_array(name: str, value: object) -> None:
    """Refuse what is no array.

    Raises:
        TypeError: `value` is neither a JAX nor a numpy array.
    """
    if isinstance(value, jax.Array | np.ndarray):
        return
    wanted = "the array of one layer, as cache.layers[0]" if name == "kv" else "a JAX or numpy array"
    raise TypeError(f"{name} is a {type(value).__name__}, it must be {wanted}")


def whole_number(name: str, value: object, least: int = 1, most: int = MOST_WHOLE) -> int:
    """Return `value` as an int.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is out of range.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}, it must be a whole number from {least} to {most}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}, it must be from {least} to {most}")
    return number


def _check_real(name: str, value: object, allowed: str, *, zero: bool) -> None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}, it must be a number known when the program is traced: {allowed}")
    with np.errstate(over="ignore", under="ignore"):
        size = abs(np.float32(float(value))) if zero else np.float32(float(value))
    if not np.float32(LEAST) <= size <= np.float32(MOST) and not (zero and value == 0):
        raise ValueError(f"{name} is {value}, it must be {allowed}, or None")


def check_name(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is none of the names that are allowed.

    Raises:
        ValueError: `value` is none of them.
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, allowed are {', '.join(map(repr, allowed))}")


def check_options(
    scale: float | None, sliding_window: int | None, logit_softcap: float | None, max_threads: int | None
) -> None:
    """Refuse options of attention that no float32 or int32 arithmetic could follow.

    Raises:
        TypeError: one is no number, or no whole number.
        ValueError: one is out of range.
    """
    if scale is not None:
        _check_real("scale", scale, f"0, or from {LEAST} to {MOST} in size", zero=True)
    if logit_softcap is not None:
        _check_real("logit_softcap", logit_softcap, f"from {LEAST} to {MOST}", zero=False)
    if sliding_window is not None:
        whole_number("sliding_window", sliding_window)
    if max_threads is not None:
        whole_number("max_threads", max_threads)


def check_attention(q, kv, page_table, lengths, new_kv=None, *, packed: bool = False) -> None:
    """Refuse arrays of `decode_attention`, or if `packed` of `decode_attention_packed`, that do not fit.

    Raises:
        TypeError: something is no array, or of a type that is not allowed.
        ValueError: shapes do not fit.
    """
    name, heads_wanted = ("qkv", "N + 2K") if packed else ("q", "N")
    _check_types(name, q, kv, page_table, lengths)
    if q.ndim != 3 or kv.ndim != 5 or page_table.ndim != 2 or (packed and q.shape[1] <= 2 * kv.shape[1]):
        raise ValueError(
            f"{name}, kv and page_table have shapes {q.shape}, {kv.shape} and {page_table.shape}, "
            f"they must be [B, {heads_wanted}, H], [P, K, 2, S, H] and [B, W]"
        )
    rows, heads, width = q.shape
    _check_cache(kv, width)
    kv_heads = kv.shape[1]
    queries = heads - 2 * kv_heads if packed else heads
    if queries == 0 or queries % kv_heads != 0:
        which = f", so {queries} of queries, which is not a" if packed else ", which is not a positive"
        raise ValueError(f"{name} has {heads} heads{which} multiple of the {kv_heads} heads of kv")
    _check_table(page_table, lengths, rows)
    if new_kv is not None:
        _check_new_kv(new_kv, kv, (rows, kv_heads, width))


def check_pages(kv, pages) -> None:
    """Refuse a cache, or ids of pages to move, whose types or shapes do not fit.

    Raises:
        TypeError: something is no array, or of a type that is not allowed.
        ValueError: shapes do not fit.
    """
    for name, array in (("kv", kv), ("pages", pages)):
        check_array(name, array)
    _check_float("kv", kv)
    _check_int32("pages", pages)
    if kv.ndim != 5 or pages.ndim != 1:
        raise ValueError(f"kv and pages have shapes {kv.shape} and {pages.shape}, they must be [P, K, 2, S, H] and [M]")
    _check_cache(kv, kv.shape[4])


def _check_types(rows_name: str, rows, kv, page_table, lengths) -> None:
    for name, array in ((rows_name, rows), ("kv", kv), ("page_table", page_table), ("lengths", lengths)):
        check_array(name, array)
    for name, array in ((rows_name, rows), ("kv", kv)):
        _check_float(name, array)
    for name, array in (("page_table", page_table), ("lengths", lengths)):
        _check_int32(name, array)


def _check_float(name: str, array) -> None:
    if array.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} has type {array.dtype}, allowed are float32, bfloat16 and float16")


def _check_int32(name: str, array) -> None:
    if array.dtype != jnp.int32:
        raise TypeError(f"{name} has type {array.dtype}, it must be int32")


def _check_cache(kv, width: int) -> None:
    if kv.shape[2] != 2 or kv.shape[4] != width or 0 in kv.shape:
        raise ValueError(f"kv has shape {kv.shape}, it must be [P, K, 2, S, {width or 'H'}] and hold at least one page")
    if kv.shape[3] not in PAGE_SIZES:
        raise ValueError(f"the page size of kv is {kv.shape[3]}, allowed are {PAGE_SIZES}")


def _check_table(page_table, lengths, rows: int) -> None:
    if page_table.shape[0] != rows or page_table.shape[1] == 0 or lengths.shape != (rows,):
        raise ValueError(
            f"page_table has shape {page_table.shape} and lengths {lengths.shape}, "
            f"they must be [{rows}, W] with W > 0 and [{rows}]"
        )


def _check_new_kv(new_kv, kv, shape: tuple[int, int, int]) -> None:
    if not isinstance(new_kv, tuple | list) or len(new_kv) != 2:
        raise TypeError(f"new_kv is a {type(new_kv).__name__}, it must be a pair of arrays: keys and values")
    for index, array in enumerate(new_kv):
        check_array(f"new_kv[{index}]", array)
        if array.dtype != kv.dtype:
            raise TypeError(f"new keys and values have type {array.dtype}, they must have that of kv, {kv.dtype}")
        if array.shape != shape:
            raise ValueError(f"new keys and values have shape {array.shape}, it must be {shape}")
