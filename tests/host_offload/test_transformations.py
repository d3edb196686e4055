"""Decode attention under `jax.vmap` and `jax.grad`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.host_offload import decode_attention, decode_attention_packed

from .host_problems import exact, make, needs_native, tolerance

both = pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_native), "jax"])


def problems():
    return [make(lengths=[20, 0, 40], heads=4, kv_heads=2, width=64, seed=seed) for seed in (0, 1)]


def stacked(parts):
    return [jnp.stack(arrays) for arrays in zip(*parts, strict=True)]


def assert_close(out, lse, problem, kv):
    expected, expected_lse = exact(problem, kv)
    assert np.abs(np.asarray(out) - expected).max() <= tolerance(problem) * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(lse), expected_lse, rtol=2e-6)


@both
def test_vmap_over_everything_appends_to_each_cache(implementation):
    cases = problems()
    q, kv, table, lengths = stacked([p.arguments() for p in cases])
    key, value = stacked([p.new_kv() for p in cases])

    def one(q, kv, table, lengths, key, value):
        return decode_attention(q, kv, table, lengths, new_kv=(key, value), implementation=implementation)

    out, lse, kv = jax.jit(jax.vmap(one), donate_argnums=1)(q, kv, table, lengths, key, value)
    for i, problem in enumerate(cases):
        np.testing.assert_array_equal(kv[i], problem.appended())
        assert_close(out[i], lse[i], problem, problem.appended())


@both
def test_vmap_over_queries_shares_the_cache(implementation):
    problem, other = problems()
    _, kv, table, lengths = problem.arguments()
    attend = functools.partial(decode_attention, implementation=implementation)
    q = jnp.stack([problem.q, other.q])
    out, lse, same = jax.vmap(attend, in_axes=(0, None, None, None), out_axes=(0, 0, None))(q, kv, table, lengths)
    np.testing.assert_array_equal(same, kv)
    assert_close(out[0], lse[0], problem, problem.kv)
    problem.q = other.q
    assert_close(out[1], lse[1], problem, problem.kv)


@both
def test_vmap_of_a_shared_cache_that_is_appended_to_gives_each_its_own(implementation):
    problem, other = problems()
    q, kv, table, lengths = problem.arguments()
    packed = jnp.stack([jnp.concatenate([q, p.key, p.value], axis=1) for p in (problem, other)])
    attend = functools.partial(decode_attention_packed, implementation=implementation)
    out, lse, kv = jax.vmap(attend, in_axes=(0, None, None, None))(packed, kv, table, lengths)
    for i, p in enumerate((problem, other)):
        problem.key, problem.value = p.key, p.value
        np.testing.assert_array_equal(kv[i], problem.appended())
        assert_close(out[i], lse[i], problem, problem.appended())


def total(q, kv, table, lengths, **options):
    return decode_attention(q, kv, table, lengths, **options)[0].sum()


@needs_native
def test_the_native_kernel_has_no_derivative():
    q, kv, table, lengths = problems()[0].arguments()
    with pytest.raises(NotImplementedError, match="cannot be differentiated: pass implementation='jax'"):
        jax.grad(functools.partial(total, implementation="native"))(q, kv, table, lengths)
    with pytest.raises(NotImplementedError, match="implementation='jax'"):
        jax.jit(jax.grad(decode_attention_total))(q, kv, table, lengths)


def decode_attention_total(q, kv, table, lengths):
    packed = jnp.concatenate([q, jnp.zeros((len(q), 2 * kv.shape[1], q.shape[2]))], axis=1)
    return decode_attention_packed(packed, kv, table, lengths)[0].sum()


@needs_native
def test_what_does_not_pass_through_attention_is_differentiated():
    q, kv, table, lengths = problems()[0].arguments()

    def loss(x):
        return x * total(jax.lax.stop_gradient(q * x), kv, table, lengths)

    np.testing.assert_allclose(jax.grad(loss)(1.0), total(q, kv, table, lengths), rtol=1e-6)


def test_plain_jax_is_differentiated():
    q, kv, table, lengths = problems()[0].arguments()
    direction = jax.random.normal(jax.random.key(0), q.shape)
    along = jnp.vdot(jax.grad(functools.partial(total, implementation="jax"))(q, kv, table, lengths), direction)
    step = 1e-2
    ahead, behind = (exact_total(q + sign * step * direction, kv) for sign in (1, -1))
    np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-3)


def exact_total(q, kv):
    problem = problems()[0]
    problem.q = np.asarray(q)
    return exact(problem, np.asarray(kv))[0].sum()
