"""An engine in whatever JAX contexts its caller is: the same tokens, nothing compiled because of them, or a refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import LLM, SamplingParams
from apex_jax.execution.own_contexts import default_device, own_contexts

from ..compilations import counted_compilations

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
SHORT, LONG = list(range(1, 9)), list(range(40))
HYBRID = {"host_kv_bytes": 1 << 20, "strategy": "async_overlap", "max_num_seqs": 1}

CONTEXTS = {
    "mesh": lambda: jax.set_mesh(jax.make_mesh((1,), ("x",))),
    "device": lambda: jax.default_device(jax.devices()[0]),
    "guard": lambda: jax.transfer_guard("disallow_explicit"),
    "precision": lambda: jax.default_matmul_precision("bfloat16"),
    "x64": lambda: jax.enable_x64(True),
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "leaks": jax.checking_leaks,
    "no jit": jax.disable_jit,
    "promotion": lambda: jax.numpy_dtype_promotion("standard"),
    "ranks": lambda: jax.numpy_rank_promotion("allow"),
    "random numbers": lambda: jax.default_prng_impl("rbg"),
    "keys": lambda: jax.debug_key_reuse(True),
    "axes": lambda: jax.auto_pcast(False),
}


def tokens(llm, *prompts):
    results = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], GREEDY, use_tqdm=False)
    return [result.outputs[0].token_ids for result in results]


@pytest.fixture(scope="module")
def hybrid(make):
    llm = make(**HYBRID)
    # Which shapes a run takes depends on how long its iterations last.
    llm.warm_up()
    tokens(llm, SHORT, LONG, SHORT)
    return llm


@pytest.fixture(scope="module")
def expected(greedy):
    return [greedy(SHORT, 8), greedy(LONG, 8), greedy(SHORT, 8)]


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_same_tokens_and_nothing_compiled(context, hybrid, expected, weights, whole):
    """With a host tier, so that the host's thread works too."""
    with CONTEXTS[context]():
        hybrid.update_params(weights)
        with counted_compilations() as compilations:
            assert tokens(hybrid, SHORT, LONG, SHORT) == expected
            streamed = hybrid.stream({"prompt_token_ids": SHORT}, GREEDY)
            assert [token for piece in streamed for token in piece.outputs[0].token_ids] == expected[0]
    assert len(compilations) == 0
    assert hybrid.stats().host_tokens > 0
    whole(hybrid)


@pytest.mark.parametrize("context", CONTEXTS)
def test_made_there(context, make, expected):
    with CONTEXTS[context]():
        llm = make(**HYBRID)
        assert tokens(llm, SHORT, LONG, SHORT) == expected
    with counted_compilations() as compilations:
        assert tokens(llm, SHORT, LONG, SHORT) == expected
    assert len(compilations) == 0


def test_callers_find_their_contexts_again():
    with jax.enable_x64(True), jax.debug_nans(True), jax.default_matmul_precision("highest"):
        with own_contexts():
            assert jnp.zeros(1).dtype == jnp.float32
        assert jnp.zeros(1).dtype == jnp.float64
        assert jax.config.jax_debug_nans
        assert jax.config.jax_default_matmul_precision == "highest"


def test_a_platform_as_default_device():
    with jax.default_device("cpu"):
        assert default_device() == jax.devices("cpu")[0]


PROMPT = {"prompt_token_ids": SHORT}

TRACED = {
    "jit": lambda llm, weights: jax.jit(lambda x: x + tokens(llm, SHORT)[0][0])(1),
    "vmap": lambda llm, weights: jax.vmap(lambda ids: llm.generate(ids))(jnp.ones((2, 3), int)),
    "grad": lambda llm, weights: jax.grad(lambda x: x * tokens(llm, SHORT)[0][0])(1.0),
    "scan": lambda llm, weights: jax.lax.scan(lambda c, x: (tokens(llm, SHORT)[0][0], x), 0, jnp.ones(2)),
    "stream": lambda llm, weights: jax.jit(lambda x: llm.stream(PROMPT))(1),
    "params": lambda llm, weights: jax.jit(llm.update_params)(weights),
    "new": lambda llm, weights: jax.jit(lambda tree: LLM.from_params(llm.config, tree))(weights),
    "model": lambda llm, weights: jax.jit(lambda x: LLM("smollm2-135m", load_format="dummy"))(1),
    "warm-up": lambda llm, weights: jax.jit(lambda x: llm.warm_up())(1),
    "close": lambda llm, weights: jax.jit(lambda x: llm.close())(1),
}


@pytest.mark.parametrize("traced", TRACED)
def test_a_trace_is_refused_at_the_door(traced, hybrid, expected, weights, whole):
    with pytest.raises(RuntimeError, match=r"called while JAX traces a function .* call it outside of the function"):
        TRACED[traced](hybrid, weights)
    assert tokens(hybrid, SHORT, LONG, SHORT) == expected
    whole(hybrid)


def test_a_stream_that_a_trace_goes_on_with_is_ended(hybrid, expected, whole):
    stream = hybrid.stream(PROMPT, GREEDY)
    next(stream)
    with pytest.raises(RuntimeError, match="called while JAX traces a function"):
        jax.jit(lambda x: next(stream).outputs[0].token_ids[0] + x)(1)
    assert tokens(hybrid, SHORT, LONG, SHORT) == expected
    whole(hybrid)


def test_arrays_that_a_trace_has_left_behind(hybrid, expected, weights):
    left = []
    jax.jit(lambda tree: left.append(tree))(weights)
    with pytest.raises(TypeError, match="belongs to a function that JAX traced; params must be arrays"):
        hybrid.update_params(left[0])
    assert tokens(hybrid, SHORT, LONG, SHORT) == expected


def test_arrays_as_prompts_under_a_guard(hybrid, expected):
    ids = jnp.asarray(SHORT)
    with jax.transfer_guard("disallow"):
        found = hybrid.generate({"prompt_token_ids": ids}, GREEDY, use_tqdm=False)
    assert found[0].outputs[0].token_ids == expected[0]
    assert hybrid.generate(np.asarray(SHORT), GREEDY, use_tqdm=False)[0].outputs[0].token_ids == expected[0]
