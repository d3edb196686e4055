"""Decode attention against float64, in every type, shape and instruction set of this machine."""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_jax.host_offload import decode_attention, decode_attention_packed, machine_instructions, native_library

from .host_problems import bound_of_rounded_weights, exact, make, needs_native, tolerance

INSTRUCTIONS = native_library.INSTRUCTIONS
TYPES = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("float16", "bfloat16"),
]


@functools.partial(
    jax.jit, static_argnames=("scale", "sliding_window", "logit_softcap", "implementation", "instructions")
)
def step(q, kv, table, lengths, new_kv, **options):
    return decode_attention(q, kv, table, lengths, new_kv=new_kv, **options)


def check(problem, *, window=None, softcap=None, scale=None, of_any_size=False, **options):
    out, lse, kv = step(
        *problem.arguments(),
        problem.new_kv(),
        sliding_window=window,
        logit_softcap=softcap,
        scale=scale,
        **options,
    )
    expected_kv = problem.appended()
    np.testing.assert_array_equal(np.asarray(kv), expected_kv)
    asked = {"scale": scale, "window": window, "softcap": softcap}
    expected, expected_lse = exact(problem, expected_kv, **asked)
    allowed = tolerance(problem)
    error = np.abs(np.asarray(out) - expected)
    if of_any_size and allowed > 1e-5:
        # With few outputs none may be large beside the values, so the error relative to the largest has no bound.
        assert (error <= bound_of_rounded_weights(problem, expected_kv, expected, **asked)).all()
    else:
        assert error.max() <= allowed * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(lse), expected_lse, rtol=2e-6 if allowed < 1e-5 else 2e-3, atol=2 * allowed)


@needs_native
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("q_type", "kv_type"), TYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(9, 3, 64), (4, 4, 128), (8, 2, 128), (7, 1, 80), (2, 2, 256), (5, 1, 32)]
)
def test_matches_float64(heads, kv_heads, width, q_type, kv_type, instructions):
    if INSTRUCTIONS.index(instructions) > INSTRUCTIONS.index(machine_instructions()):
        pytest.skip(f"this machine has no {instructions}")
    problem = make(
        lengths=[150, 0, 1, 64],
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        q_type=q_type,
        kv_type=kv_type,
        page_size=32,
    )
    check(problem, implementation="native", instructions=instructions)
    check(problem, implementation="native", instructions=instructions, window=37, softcap=20.0, scale=0.3)


@pytest.mark.parametrize(("q_type", "kv_type"), TYPES)
def test_plain_jax_matches_float64(q_type, kv_type):
    problem = make(lengths=[150, 0, 1, 64], heads=6, kv_heads=2, width=40, q_type=q_type, kv_type=kv_type)
    check(problem, implementation="jax")
    check(problem, implementation="jax", window=37, softcap=20.0)


@needs_native
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("q_type", "kv_type"), [("float32", "float32"), ("float16", "float16"), ("bfloat16",) * 2])
def test_soft_cap_is_exact_for_tiny_and_huge_scores(q_type, kv_type, instructions):
    if INSTRUCTIONS.index(instructions) > INSTRUCTIONS.index(machine_instructions()):
        pytest.skip(f"this machine has no {instructions}")
    problem = make(lengths=[90, 1], heads=8, kv_heads=2, width=64, q_type=q_type, kv_type=kv_type)
    # Scores from 1e-30 of the cap to 1e20 times it, and around 0.625 of it, where two formulas meet.
    for cap in (1e-30, 1e-3, 0.5, 20.0, 1e30):
        for scale in (1e-25, 0.01, 0.3, 1.6, 40.0 if cap < 1e30 else 1.0):
            check(problem, implementation="native", instructions=instructions, softcap=cap, scale=scale)


@needs_native
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_problem_matches_float64(data):
    q_type, kv_type = data.draw(st.sampled_from(TYPES))
    kv_heads = data.draw(st.integers(1, 4))
    problem = make(
        lengths=data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=5)),
        heads=kv_heads * data.draw(st.integers(1, 9)),
        kv_heads=kv_heads,
        width=data.draw(st.sampled_from([32, 48, 64, 96, 128, 192])),
        page_size=data.draw(st.sampled_from([16, 32, 64, 128])),
        q_type=q_type,
        kv_type=kv_type,
        seed=data.draw(st.integers(0, 2**31)),
    )
    check(
        problem,
        implementation="native",
        instructions=data.draw(st.sampled_from(INSTRUCTIONS)),
        window=data.draw(st.one_of(st.none(), st.integers(1, 500))),
        of_any_size=True,
    )


@needs_native
@pytest.mark.parametrize("max_threads", [1, None])
def test_long_rows_are_cut_and_merged(max_threads):
    problem = make(lengths=[20000, 300], heads=4, kv_heads=2, width=64, page_size=64)
    out, lse, _ = jax.jit(functools.partial(decode_attention, max_threads=max_threads))(*problem.arguments())
    expected, expected_lse = exact(problem, problem.kv)
    assert np.abs(np.asarray(out) - expected).max() <= 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(lse), expected_lse, rtol=1e-6)


@needs_native
@pytest.mark.slow
def test_longest_row():
    problem = make(
        lengths=[131072], heads=2, kv_heads=1, width=32, page_size=128, q_type="bfloat16", kv_type="bfloat16"
    )
    out, _, _ = decode_attention(*problem.arguments())
    expected, _ = exact(problem, problem.kv)
    assert np.abs(np.asarray(out) - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_native), "jax"])
def test_parts_merge_through_log_sum_exp(implementation):
    problem = make(lengths=[200], heads=4, kv_heads=2, width=64)
    q, kv, table, lengths = problem.arguments()
    attend = functools.partial(decode_attention, q, kv, implementation=implementation)
    whole, whole_lse, _ = attend(table, lengths)
    first, first_lse, _ = attend(table[:, :4], jnp.array([64], jnp.int32))
    second, second_lse, _ = attend(table[:, 4:], lengths - 64)
    lse = jnp.logaddexp(first_lse, second_lse)
    merged = jnp.exp(first_lse - lse)[..., None] * first + jnp.exp(second_lse - lse)[..., None] * second
    np.testing.assert_allclose(merged, whole, atol=2e-6)
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-6)


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_native), "jax"])
@pytest.mark.parametrize("kv_type", ["float32", "bfloat16", "float16"])
def test_append_happens_in_place(implementation, kv_type):
    problem = make(lengths=[100, 3], heads=4, kv_heads=2, width=64, page_size=64, kv_type=kv_type)
    q, kv, table, lengths = problem.arguments()
    kv = jnp.zeros((4096, *kv.shape[1:]), kv.dtype)

    def append(kv, q, table, lengths, key, value):
        return decode_attention(q, kv, table, lengths, new_kv=(key, value), implementation=implementation)

    compiled = jax.jit(append, donate_argnums=0).lower(kv, q, table, lengths, *problem.new_kv()).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < kv.nbytes // 100
    pointer = kv.unsafe_buffer_pointer()
    for _ in range(3):
        _, _, kv = compiled(kv, q, table, lengths, *problem.new_kv())
        assert kv.unsafe_buffer_pointer() == pointer
    np.testing.assert_array_equal(kv[table[0, 1], :, 0, 99 - 64], problem.key[0])


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_native), "jax"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kv_type", ["float32", "bfloat16", "float16"])
def test_poison_stays_in_its_row(implementation, poison, kv_type):
    problem = make(lengths=[33, 33, 7], heads=4, kv_heads=2, width=64, q_type=kv_type, kv_type=kv_type)
    problem.kv[problem.table[1, 0], 0, 1, 5] = poison
    # Memory behind a row's last token belongs to nobody and may hold anything.
    problem.kv[problem.table[0, 2], :, :, 1:] = poison
    problem.kv[problem.table[2, 0], :, :, 7:] = poison
    out, _, _ = decode_attention(*problem.arguments(), implementation=implementation)
    assert not np.isfinite(np.asarray(out)[1, :2]).any()
    clean = np.asarray(out)[[0, 2]]
    assert np.isfinite(clean).all()
    assert np.isfinite(np.asarray(out)[1, 2:]).all()
    expected, _ = exact(only_rows(problem, [0, 2]), problem.kv)
    assert np.abs(clean - expected).max() <= tolerance(problem) * np.abs(expected).max()


def only_rows(problem, rows):
    picked = {name: getattr(problem, name)[rows] for name in ("q", "table", "lengths", "key", "value")}
    return dataclasses.replace(problem, **picked)


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_native), "jax"])
def test_no_rows_give_empty_results(implementation):
    problem = make(lengths=[1], heads=4, kv_heads=2, width=64)
    q, kv, table, lengths = problem.arguments()
    out, lse, _ = decode_attention(q[:0], kv, table[:0], lengths[:0], implementation=implementation)
    assert out.shape == (0, 4, 64)
    assert lse.shape == (0, 4)


@needs_native
def test_strided_and_misaligned_arrays_are_taken():
    problem = make(lengths=[20, 40], heads=4, kv_heads=2, width=64)
    wide = np.zeros((2, 4, 128), np.float32)
    wide[:, :, ::2] = problem.q
    raw = np.empty(problem.kv.nbytes + 4, np.uint8)
    shifted = raw[4:].view(np.float32).reshape(problem.kv.shape)
    shifted[...] = problem.kv
    out, _, _ = jax.jit(decode_attention)(wide[:, :, ::2], shifted, problem.table, problem.lengths)
    expected, _ = exact(problem, problem.kv)
    assert np.abs(np.asarray(out) - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_native), "jax"])
@pytest.mark.parametrize("kv_type", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("q_type", ["float32", "bfloat16", "float16"])
def test_packed_rows_are_rounded_and_appended(implementation, q_type, kv_type):
    problem = make(lengths=[37, 0, 1], heads=6, kv_heads=2, width=64, q_type=q_type, kv_type=kv_type)
    _, kv, table, lengths = problem.arguments()
    rng = np.random.default_rng(1)
    # Exponents down to the subnormal numbers of the half types, and beyond the largest float16.
    new = rng.standard_normal((3, 4, 64)) * 2.0 ** rng.integers(-30, 2, (3, 4, 64))
    new[2, 0, :4] = [70000.0, -np.inf, 65519.0, 2.0**-24]
    packed = jnp.concatenate([jnp.asarray(problem.q), jnp.asarray(new, jnp.float32).astype(q_type)], axis=1)
    rounded = packed[:, 6:].astype(kv_type)
    key, value = np.asarray(rounded[:, :2]), np.asarray(rounded[:, 2:])
    out, _, kv = jax.jit(functools.partial(decode_attention_packed, implementation=implementation), donate_argnums=1)(
        packed, kv, table, lengths
    )
    expected_kv = dataclasses.replace(problem, key=key, value=value).appended()
    np.testing.assert_array_equal(np.asarray(kv), expected_kv)
    expected, _ = exact(only_rows(problem, [0]), expected_kv)
    assert np.abs(np.asarray(out)[:1] - expected).max() <= tolerance(problem) * np.abs(expected).max()
    assert not np.asarray(out)[1].any()


def test_packed_rows_need_keys_and_values():
    problem = make(lengths=[5], heads=4, kv_heads=2, width=64)
    _, kv, table, lengths = problem.arguments()
    with pytest.raises(ValueError, match=r"qkv, kv and page_table have shapes \(1, 4, 64\)"):
        decode_attention_packed(jnp.zeros((1, 4, 64)), kv, table, lengths)
    with pytest.raises(ValueError, match="qkv has 7 heads, so 3 of queries"):
        decode_attention_packed(jnp.zeros((1, 7, 64)), kv, table, lengths)


@needs_native
def test_layers_may_be_worked_on_by_several_threads_at_once():
    problems = [make(lengths=[3000, 70, 0], heads=8, kv_heads=2, width=64, page_size=64, seed=i) for i in range(3)]
    attend = jax.jit(decode_attention)
    with ThreadPoolExecutor(len(problems)) as pool:
        outs = list(pool.map(lambda p: [np.asarray(attend(*p.arguments())[0]) for _ in range(20)], problems))
    for problem, results in zip(problems, outs, strict=True):
        expected, _ = exact(problem, problem.kv)
        for out in results:
            assert np.abs(out - expected).max() <= 2e-6 * np.abs(expected).max()
