"""After warm-up nothing is compiled, whatever comes; new weights need nothing new either."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.execution.sampler import MODES, SamplingMode
from apex_jax.models import random_weights

from ..compilations import counted_compilations
from .hybrid import Restless, check_empty, run, settle, unsettle

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = [5, 17, 40]


@pytest.fixture(scope="module")
def small():
    return LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=100,
    )


def mixed(rng):
    """Sampling parameters of any mode."""
    greedy = rng.random() < 0.3
    return SamplingParams(
        temperature=0 if greedy else float(rng.uniform(0.2, 2)),
        top_k=int(rng.choice([0, 5])),
        top_p=float(rng.choice([1.0, 0.8])),
        min_p=float(rng.choice([0.0, 0.1])),
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.3])),
        min_tokens=int(rng.choice([0, 0, 2])),
        logprobs=[None, None, 0, 3][rng.integers(4)],
        max_tokens=int(rng.integers(2, 9)),
        n=int(rng.choice([1, 1, 1, 2])),
        presence_penalty=float(rng.choice([0, 0, 0, 0.5])),
    )


def test_the_count_sees_a_compilation():
    with counted_compilations() as compilations:
        jax.jit(lambda x: x * 3.0 + 1.0)(jnp.zeros(3))
    assert compilations
    with counted_compilations() as compilations:
        jnp.zeros(3)
    assert not compilations


def test_nothing_is_compiled_after_warm_up(attention, small, make):
    """500 requests with cancellations and preemptions, half of them one batch after another and half at once."""
    llm = make(
        attention,
        config=small,
        params=random_weights(small, 0, "float32"),
        max_num_seqs=2,
        max_num_batched_tokens=32,
        device_kv_tokens=112,
    )
    llm.warm_up()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 64, rng.integers(1, 91)).tolist() for _ in range(500)]
    params = [mixed(rng) for _ in prompts]
    assert {mode_of(p) for p in params} == set(MODES)
    with counted_compilations() as compilations:
        for first in range(0, 250, 10):
            llm.generate(prompts[first : first + 10], params[first : first + 10], use_tqdm=False)
        next(llm.stream(prompts[:3], params[:3]))
        outputs = llm.generate(prompts[250:], params[250:], use_tqdm=False)
    assert len(outputs) == 250
    assert llm.stats().preemptions > 0
    assert len(compilations) == 0
    with counted_compilations() as compilations:
        device = llm.engine.executor.device
        device.runner.decode(np.zeros((3, 2 + device.buckets.table_width), np.int32))
    assert compilations


def test_nothing_is_compiled_after_warm_up_with_a_host_tier(small, make):
    """Strategies that change at random, and moves that nobody needs."""
    six_layers = dataclasses.replace(small, num_hidden_layers=6)
    llm = make(
        config=six_layers,
        params=random_weights(six_layers, 0, "float32"),
        max_num_seqs=1,
        max_host_seqs=3,
        max_num_batched_tokens=16,
        device_kv_tokens=112,
        host_kv_bytes=16 * 16 * 2 * six_layers.num_hidden_layers * 16 * 4,
        strategy="async_overlap",
    )
    llm.warm_up()
    rng = np.random.default_rng(1)
    with counted_compilations() as compilations:
        for strategy in ("async_overlap", "layer_sync", "asymmetric_pipelining", "changing"):
            scheduler = settle(llm, "async_overlap" if strategy == "changing" else strategy)
            if strategy == "changing":
                scheduler.policy = Restless(rng, 6)
                unsettle(scheduler, rng, chance=0.4)
            load = [(rng.integers(0, 64, rng.integers(1, 91)).tolist(), mixed(rng)) for _ in range(40)]
            run(llm, load, rng, arrive=0.06)
            check_empty(llm)
    assert len(compilations) == 0
    stats = llm.stats()
    assert min(stats.host_tokens, stats.evictions, stats.landings) > 10
    assert stats.preemptions > 0
    with counted_compilations() as compilations:
        llm.engine.executor.worker.warm_up(rows=(5,), width=2, pages=())
    assert compilations


def mode_of(params):
    return SamplingMode.covering([params])


class TestNewWeights:
    def test_give_the_new_models_tokens_and_compile_nothing(self, make, config, weights, greedy):
        llm = make()
        others = [random_weights(config, seed, "float32") for seed in (70, 71)]
        before = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        assert before == greedy(PROMPT, 12)
        for other in others:
            with counted_compilations() as compilations:
                llm.update_params(other)
                found = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
            assert len(compilations) == 0
            assert found == greedy(PROMPT, 12, weights=other) != before
        llm.update_params(weights)
        assert llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == before

    def test_are_refused_while_requests_are_under_way(self, make, weights, greedy):
        llm = make()
        stream = llm.stream(PROMPT, GREEDY)
        llm.update_params(weights)  # not started yet
        tokens = next(stream).outputs[0].token_ids
        with pytest.raises(RuntimeError, match="update_params was called while requests are under way"):
            llm.update_params(weights)
        tokens += [token for output in stream for token in output.outputs[0].token_ids]
        assert tokens == greedy(PROMPT, 12)
        llm.update_params(weights)

    def test_of_the_wrong_shape_are_named_and_leave_the_old_ones(self, make, weights, greedy):
        llm = make()
        wrong = dataclasses.replace(weights, norm={"scale": jnp.ones(33)})
        with pytest.raises(ValueError, match=r"norm\.scale.*33"):
            llm.update_params(wrong)
        with pytest.raises(ValueError, match=r"missing: lm_head\.weight, .* and 13 more"):
            llm.update_params({})
        assert llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == greedy(PROMPT, 12)


def hugging_face_names(config, weights):
    """Return the weights under their checkpoint names: matrices [out, in], nothing fused."""
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    named = {
        "model.embed_tokens.weight": weights.embed["table"],
        "model.norm.weight": weights.norm["scale"],
        "lm_head.weight": weights.head["kernel"].T,
    }
    for i, layer in enumerate(weights.layers):
        flat = {jax.tree_util.keystr(p, simple=True, separator="."): a for p, a in jax.tree.leaves_with_path(layer)}
        q, k, v = np.split(flat["qkv.kernel"], [heads * width, (heads + kv_heads) * width], axis=1)
        gate, up = np.split(flat["gate_up.kernel"], 2, axis=1)
        parts = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": flat["output.kernel"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": flat["down.kernel"],
        }
        named |= {f"model.layers.{i}.{name}.weight": np.asarray(matrix).T for name, matrix in parts.items()}
        named[f"model.layers.{i}.input_layernorm.weight"] = flat["attention_norm.scale"]
        named[f"model.layers.{i}.post_attention_layernorm.weight"] = flat["mlp_norm.scale"]
    return named


def aligned(array):
    """Return a copy that begins where JAX would use the memory of a numpy array as its own."""
    size = np.asarray(array).nbytes
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + size].view(np.float32).reshape(array.shape)
    copy[...] = array
    return copy


class TestParams:
    def test_under_hugging_faces_names(self, make, config, weights, greedy):
        llm = make(params=hugging_face_names(config, weights))
        assert llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == greedy(PROMPT, 12)
        other = random_weights(config, 70, "float32")
        llm.update_params(hugging_face_names(config, other))
        found = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        assert found == greedy(PROMPT, 12, weights=other)

    def test_that_the_caller_changes_in_place_afterwards(self, make, config, weights, greedy):
        """A training program may update its arrays in place; the engine has taken its own."""
        named = {name: aligned(array) for name, array in hugging_face_names(config, weights).items()}
        llm = make(params=named)
        for array in named.values():
            array[...] = 0
        assert llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == greedy(PROMPT, 12)

    def test_in_a_type_that_no_model_has(self, config, weights):
        named = {name: np.asarray(a, np.float64) for name, a in hugging_face_names(config, weights).items()}
        with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16, got float64"):
            LLM.from_params(config, named)
        llm = LLM.from_params(config, named, dtype="float32", page_size=16, max_num_seqs=1)
        assert str(llm.dtype) == "float32"
        with pytest.raises(TypeError, match="array"):
            LLM.from_params(config, {"model.norm.weight": 1.0})
