"""A tiny model, its dense reference, and engines over it that share their compiled programs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import apex_jax.engine.executor_factory
import apex_jax.host_offload.worker
import apex_jax.llm
from apex_jax import LLM, LlamaConfig
from apex_jax.execution.attention_backend import DeviceAttention
from apex_jax.execution.page_writes import write_tokens
from apex_jax.execution.paged_attention import decode_attention
from apex_jax.host_offload import native_attention_available
from apex_jax.models import forward, random_weights

EOS = 11
LIMIT = 256


@pytest.fixture(scope="session", autouse=True)
def shared_programs():
    """Compile the programs of one model once, however many engines the tests make."""
    original, first, sized = functools.cache(apex_jax.engine.executor_factory.build_programs), {}, {}

    def build(config, attention, page_size):
        # They take layers as arguments, so that models of any depth share them.
        config = config.replace(num_hidden_layers=1)
        built = original(config, attention, page_size)
        of_model, of_size = first.setdefault(config, built), sized.setdefault((config, page_size), built)
        return dataclasses.replace(
            built,
            # These depend on the model alone, or on its page size as well, but not on the attention.
            **{name: getattr(of_model, name) for name in ("sample", "mark_prompt", "spread", "collect", "boundary")},
            **{name: getattr(of_size, name) for name in ("embed", "gather", "scatter")},
        )

    host = functools.cache(apex_jax.host_offload.worker.build_programs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apex_jax.engine.executor_factory, "build_programs", build)
        patch.setattr(apex_jax.host_offload.worker, "build_programs", host)
        yield


@pytest.fixture(scope="session")
def config():
    return LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=LIMIT,
        eos_token_ids=(EOS,),
    )


@pytest.fixture(scope="session")
def weights(config):
    return random_weights(config, 3, "float32")


@pytest.fixture(scope="session")
def dense(config, weights):
    """(token ids, weights) -> float32 logits [T, V] of the plain model."""
    compiled = jax.jit(functools.partial(forward, config))

    def logits(ids, weights=weights):
        padded = np.zeros(LIMIT, np.int32)
        padded[: len(ids)] = ids
        return np.asarray(compiled(weights, jnp.asarray(padded)[None]))[0, : len(ids)]

    return logits


@pytest.fixture(scope="session")
def greedy(dense):
    """(prompt, count) -> the tokens the plain model gives, the most probable one each time."""

    def tokens(prompt, count, *, weights=None, penalty=1.0, stop=()):
        ids = list(prompt)
        while len(ids) < len(prompt) + count:
            last = (dense(ids) if weights is None else dense(ids, weights))[-1].astype(np.float64)
            seen = sorted(set(ids))
            last[seen] = np.where(last[seen] > 0, last[seen] / penalty, last[seen] * penalty)
            ids.append(int(last.argmax()))
            if ids[-1] in stop:
                break
        return ids[len(prompt) :]

    return tokens


def xla_attention():
    def attend(q, k, v, kv, table, lengths, window):
        kv = write_tokens(kv, table, lengths, k, v)
        return decode_attention(q, kv, table, lengths, window=window), kv

    return DeviceAttention(name="xla", append_and_attend=attend, ragged=False)


XLA = xla_attention()


@pytest.fixture(scope="session")
def make(config, weights):
    """(attention, options...) -> LLM of the tiny model."""

    def build(attention=None, *, config=config, params=None, **options: Any):
        defaults: dict[str, Any] = {"page_size": 16, "max_num_seqs": 16, "max_num_batched_tokens": 32}
        defaults["device_kv_tokens"] = 4096
        with pytest.MonkeyPatch.context() as patch:
            if attention == "xla":
                patch.setattr(apex_jax.llm, "device_attention_for", lambda device, head_dim: XLA)
            elif attention == "native" and not native_attention_available(config.head_dim):
                pytest.skip("the native attention library is not built")
            return LLM.from_params(config, weights if params is None else params, **(defaults | options))

    return build


@pytest.fixture(scope="module")
def llm(make):
    return make()


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture(scope="session")
def draw(config):
    """(rng, length) -> a random prompt."""
    return lambda rng, length: rng.integers(0, config.vocab_size, length).tolist()


@pytest.fixture
def whole():
    """(llm) -> None; checks that an engine holds nothing."""

    def check(llm):
        stats = llm.stats()
        assert (stats.running, stats.waiting, stats.on_host) == (0, 0, 0)
        assert (stats.free_pages, stats.free_host_pages) == (stats.num_pages, stats.num_host_pages)

    return check


def pytest_generate_tests(metafunc):
    if "attention" in metafunc.fixturenames:
        metafunc.parametrize("attention", ["native", "xla"])
