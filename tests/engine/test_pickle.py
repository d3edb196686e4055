"""An LLM through pickle: how it was made, or what to send instead."""

import copy
import pickle
import subprocess
import sys

import jax
import pytest

from apex_jax import LLM, SamplingParams
from apex_jax.models import random_weights

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def tokens(llm):
    return llm.generate({"prompt_token_ids": [5, 6, 7]}, GREEDY, use_tqdm=False)[0].outputs[0].token_ids


class Mine(LLM):
    """A user's own."""


def test_another_is_made_of_the_same_model_with_the_same_options(stories):
    options = {"device_kv_tokens": 256, "host_kv_bytes": 1 << 20, "strategy": "layer_sync", "max_num_seqs": 2}
    llm = Mine(stories, device=jax.devices("cpu")[0], max_num_batched_tokens=32, page_size=16, **options)
    sent = pickle.dumps(llm)
    assert len(sent) < 1000
    for other in (pickle.loads(sent), copy.copy(llm)):
        assert type(other) is Mine
        assert tokens(other) == tokens(llm)
        sizes = ("device", "device_kv_tokens", "host_kv_tokens", "strategy", "config", "max_model_len", "dtype")
        assert [getattr(other, name) for name in sizes] == [getattr(llm, name) for name in sizes]
        assert pickle.dumps(other) == sent


def test_a_device_that_is_not_there(stories):
    llm = LLM(stories, device=jax.devices("cpu")[0], device_kv_tokens=64)
    make, (made, model, arguments, (platform, number)) = llm.__reduce__()
    assert (platform, number) == ("cpu", 0)
    with pytest.raises(ValueError, match=r"the LLM ran on cpu:77; here are .*cpu"):
        make(made, model, arguments, ("cpu", 77))


def test_weights_that_came_as_arrays(make, stories):
    said = r"cannot be pickled: send the configuration, the params .* call LLM\.from_params there"
    with pytest.raises(TypeError, match=said):
        pickle.dumps(make())
    llm = LLM(stories, device_kv_tokens=64)
    pickle.dumps(llm)
    llm.update_params(random_weights(llm.config, 0, "float32"))
    with pytest.raises(TypeError, match=said):
        pickle.dumps(llm)


SPAWNING = """
import multiprocessing
import sys
from apex_jax import LLM, SamplingParams


def tokens(llm):
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    return llm.generate("Once upon", params, use_tqdm=False)[0].outputs[0].token_ids


if __name__ == "__main__":
    llm = LLM(sys.argv[1], device_kv_tokens=128, max_num_seqs=2)
    with multiprocessing.get_context("spawn").Pool(1) as children:
        assert children.map(tokens, [llm]) == [tokens(llm)]
    print("alike")
"""


def test_to_a_spawned_process(stories, tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    done = subprocess.run([sys.executable, script, stories], capture_output=True, text=True, timeout=300)
    assert done.stdout == "alike\n", done.stderr[-2000:]
