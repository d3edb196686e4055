"""Each bad input is refused, by name and value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.host_offload import (
    HostKVCache,
    decode_attention,
    decode_attention_packed,
    read_pages,
    write_pages,
)

from .host_problems import exact, make, needs_native, tolerance


def problem():
    return make(lengths=[20, 40], heads=4, kv_heads=2, width=64)


@needs_native
@pytest.mark.parametrize(
    ("row", "page", "length", "message"),
    [
        (1, 99, 40, r"row 1 has page id 99 at position 0 .* allowed are 0 to 6"),
        (0, -1, 20, r"row 0 has page id -1 at position 0"),
        (1, 0, 49, r"row 1 has length 49, allowed are 0 to 48"),
        (0, 0, -3, r"row 0 has length -3"),
    ],
)
def test_native_refuses_rows_out_of_bounds(row, page, length, message):
    bad = problem()
    bad.table[row, 0], bad.lengths[row] = page, length
    # ValueError where the function ran before: JAX then dispatches it another way.
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=message):
        jax.block_until_ready(jax.jit(decode_attention)(*bad.arguments()))


@pytest.mark.parametrize(("page", "length"), [(99, 40), (-1, 40), (0, 49), (0, -1)])
def test_plain_jax_marks_rows_out_of_bounds(page, length):
    bad = problem()
    bad.table[1, 0], bad.lengths[1] = page, length
    out, lse, _ = decode_attention(*bad.arguments(), implementation="jax")
    assert np.isnan(out[1]).all()
    assert np.isnan(lse[1]).all()
    assert np.isfinite(out[0]).all()


def test_ids_behind_the_last_token_are_not_looked_at():
    fine = problem()
    fine.table[0, 2] = -7
    for implementation in ("auto", "jax"):
        out, _, _ = decode_attention(*fine.arguments(), implementation=implementation)
        assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": lambda x: x.astype(jnp.int32)}, TypeError, "q has type int32"),
        ({"kv": lambda x: x.astype(jnp.int8)}, TypeError, "kv has type int8"),
        ({"table": lambda x: x.astype(jnp.uint32)}, TypeError, "page_table has type uint32"),
        ({"lengths": lambda x: x.astype(jnp.float32)}, TypeError, "lengths has type float32"),
        ({"q": lambda x: x[0]}, ValueError, r"they must be \[B, N, H\]"),
        ({"q": lambda x: x[:, :3]}, ValueError, "q has 3 heads"),
        ({"q": lambda x: x[..., :32]}, ValueError, "kv has shape"),
        ({"kv": lambda x: x[:, :, :, :8]}, ValueError, "page size of kv is 8"),
        ({"kv": lambda x: x[:0]}, ValueError, "at least one page"),
        ({"table": lambda x: x[:1]}, ValueError, "page_table has shape"),
        ({"lengths": lambda x: x[:1]}, ValueError, "lengths"),
        ({"q": lambda x: x[..., :0], "kv": lambda x: x[..., :0]}, ValueError, r"kv has shape .*, 0\), it must be"),
    ],
)
def test_types_and_shapes_are_checked_when_traced(change, error, message):
    names = ("q", "kv", "table", "lengths")
    arguments = [change.get(name, lambda x: x)(x) for name, x in zip(names, problem().arguments(), strict=True)]
    with pytest.raises(error, match=message):
        jax.eval_shape(decode_attention, *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "scale is nan, it must be 0, or from 1e-30 to 1e"),
        ({"scale": 1e39}, r"scale is 1e\+39"),
        ({"scale": -1e-46}, "scale is -1e-46"),
        ({"logit_softcap": 0.0}, "logit_softcap is 0.0, it must be from 1e-30 to 1e"),
        ({"logit_softcap": 1e-46}, "logit_softcap is 1e-46"),
        ({"logit_softcap": 3e38}, r"logit_softcap is 3e\+38"),
        ({"logit_softcap": float("nan")}, "logit_softcap is nan"),
        ({"sliding_window": 0}, "sliding_window is 0, it must be from 1 to 2147483647"),
        ({"sliding_window": 2**40}, "sliding_window is 1099511627776"),
        ({"max_threads": 0}, "max_threads is 0"),
        ({"implementation": "fast"}, "implementation is 'fast', allowed are 'auto', 'native', 'jax'"),
        ({"instructions": "sse"}, "instructions is 'sse', allowed are 'auto', 'portable'"),
        ({"instructions": "sse", "implementation": "jax"}, "instructions is 'sse'"),
    ],
)
@pytest.mark.parametrize("rows", [0, 2])
def test_options_are_checked(options, message, rows):
    q, kv, table, lengths = problem().arguments()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(decode_attention, **options), q[:rows], kv, table[:rows], lengths[:rows])
    if "instructions" not in options:
        packed = jnp.zeros((rows, 8, 64))
        with pytest.raises(ValueError, match=message):
            decode_attention_packed(packed, kv, table[:rows], lengths[:rows], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sliding_window": 8.5}, "sliding_window is 8.5, it must be a whole number"),
        ({"max_threads": True}, "max_threads is True, it must be a whole number"),
        ({"scale": "0.5"}, "scale is '0.5', it must be a number"),
        ({"logit_softcap": [50.0]}, r"logit_softcap is \[50.0\], it must be a number"),
    ],
)
def test_options_are_numbers(options, message):
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(functools.partial(decode_attention, **options), *problem().arguments())


def test_options_are_known_when_traced():
    arguments = problem().arguments()
    with pytest.raises(TypeError, match=r"scale is .*, it must be a number known when the program is traced"):
        jax.jit(lambda scale: decode_attention(*arguments, scale=scale))(0.5)


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_native), "jax"])
def test_options_at_their_limits_are_finite(implementation):
    for options in ({"scale": 0}, {"scale": np.float32(1e30)}, {"logit_softcap": 1e-30}, {"logit_softcap": 1e30}):
        small = problem()
        small.q[...] = 1e-3
        out, lse, _ = decode_attention(*small.arguments(), implementation=implementation, **options)
        assert np.isfinite(out).all()
        assert np.isfinite(lse).all()
    out, _, _ = decode_attention(*problem().arguments(), implementation=implementation, sliding_window=2**31 - 1)
    expected, _, _ = decode_attention(*problem().arguments(), implementation=implementation)
    np.testing.assert_array_equal(out, expected)


def test_what_is_no_array_is_refused():
    q, kv, table, lengths = problem().arguments()
    cache = HostKVCache(layers=(kv,))
    with pytest.raises(
        TypeError, match=r"kv is a HostKVCache, it must be the array of one layer, as cache.layers\[0\]"
    ):
        decode_attention(q, cache, table, lengths)
    with pytest.raises(TypeError, match="kv is a HostKVCache"):
        decode_attention_packed(q, cache, table, lengths)
    with pytest.raises(TypeError, match="kv is a HostKVCache"):
        read_pages(cache, lengths)
    with pytest.raises(TypeError, match="page_table is a list, it must be a JAX or numpy array"):
        decode_attention(q, kv, table.tolist(), lengths)
    with pytest.raises(TypeError, match="lengths is a list"):
        decode_attention(q, kv, table, lengths.tolist())
    with pytest.raises(TypeError, match="tiles is a list"):
        write_pages(kv, lengths, [kv])
    with pytest.raises(TypeError, match="q is a ShapeDtypeStruct, it must be a JAX or numpy array"):
        decode_attention(jax.ShapeDtypeStruct(q.shape, q.dtype), kv, table, lengths)
    with pytest.raises(TypeError, match=r"new_kv\[1\] is a NoneType, it must be a JAX or numpy array"):
        decode_attention(q, kv, table, lengths, new_kv=(problem().new_kv()[0], None))
    with pytest.raises(TypeError, match="new_kv is a ArrayImpl, it must be a pair of arrays"):
        decode_attention(q, kv, table, lengths, new_kv=problem().new_kv()[0])


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_native), "jax"])
def test_numpy_arrays_are_taken(implementation):
    p = problem()
    out, lse, kv = decode_attention(
        p.q, p.kv, p.table, p.lengths, new_kv=(p.key, p.value), implementation=implementation
    )
    expected, expected_lse = exact(p, p.appended())
    assert np.abs(np.asarray(out) - expected).max() <= tolerance(p) * np.abs(expected).max()
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-6)
    np.testing.assert_array_equal(kv, p.appended())
    packed = np.concatenate([p.q, p.key, p.value], axis=1)
    out, _, _ = decode_attention_packed(packed, p.kv, p.table, p.lengths, implementation=implementation)
    assert np.abs(np.asarray(out) - expected).max() <= tolerance(p) * np.abs(expected).max()


def test_new_keys_must_fit_the_cache():
    p = problem()
    key, value = p.new_kv()
    with pytest.raises(TypeError, match="new keys and values have type bfloat16"):
        decode_attention(*p.arguments(), new_kv=(key.astype(jnp.bfloat16), value))
    with pytest.raises(ValueError, match="new keys and values have shape"):
        decode_attention(*p.arguments(), new_kv=(key[:, :1], value))


@needs_native
def test_native_names_the_widths_it_has():
    p = make(lengths=[3], heads=2, kv_heads=2, width=40)
    q, kv, table, lengths = p.arguments()
    for rows in (0, 1):
        with pytest.raises(ValueError, match="head width 40 is not supported"):
            decode_attention(q[:rows], kv, table[:rows], lengths[:rows], implementation="native")
    out, _, _ = decode_attention(*p.arguments())
    assert np.isfinite(out).all()
