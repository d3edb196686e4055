"""Params on several devices, a mesh in force, and a default device that is not the first."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import functools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.engine import executor_factory
from apex_jax.host_offload import worker
from apex_jax.models.loading.hf_names import checkpoint_shapes

# Of one model: traced once.
for module in (executor_factory, worker):
    module.build_programs = functools.cache(module.build_programs)

CONFIG = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
)
OPTIONS = dict(device_kv_tokens=256, host_kv_bytes=1 << 20, strategy="async_overlap", max_num_seqs=1, page_size=16)
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
rng = np.random.default_rng(0)
OLD, NEW = (
    {name: np.float32(rng.normal(len(shape) == 1, 0.3, shape)) for name, shape in checkpoint_shapes(CONFIG).items()}
    for _ in range(2)
)


def tokens(llm, length):
    prompts = [{"prompt_token_ids": list(range(1, length))}, {"prompt_token_ids": [7, 8]}]
    return [result.outputs[0].token_ids for result in llm.generate(prompts, GREEDY, use_tqdm=False)]


def all_of(make):
    # The first, a new shape, and both again after new weights.
    llm = LLM.from_params(CONFIG, make(OLD), **OPTIONS)
    found = [tokens(llm, 4), tokens(llm, 40)]
    llm.update_params(make(NEW))
    found += [tokens(llm, 4), tokens(llm, 40), tokens(llm, 90)]
    llm.close()
    return llm.device, found


def placed(sharding):
    return lambda tree: {name: jax.device_put(array, sharding(array)) for name, array in tree.items()}


def in_mesh(mesh, *axes):
    return placed(lambda array: NamedSharding(mesh, PartitionSpec(*axes[: array.ndim])))


first, last = jax.devices()[0], jax.devices()[-1]
device, expected = all_of(lambda tree: tree)
assert device == first and len(set(map(str, expected))) == 5, expected
kinds = {"auto": (AxisType.Auto,), "explicit": None}
for kind, axis_types in kinds.items():
    mesh = jax.make_mesh((len(jax.devices()),), ("x",), axis_types=axis_types)
    for axes in ((), ("x",), (None, "x")):
        assert all_of(in_mesh(mesh, *axes)) == (first, expected), (kind, axes)
    with jax.set_mesh(mesh):
        assert all_of(in_mesh(mesh, "x")) == (first, expected), kind
assert all_of(placed(lambda array: last)) == (first, expected)
with jax.default_device(last):
    assert all_of(lambda tree: tree) == (last, expected)
jax.config.update("jax_default_device", last)
assert all_of(in_mesh(mesh, "x")) == (last, expected)
print("alike", len(jax.devices()))
"""


@pytest.mark.parametrize("count", [1, 4])
def test_params_and_callers_in_a_mesh(count, tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = tmp_path / "mesh.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout == f"alike {count}\n", done.stderr[-2000:]
