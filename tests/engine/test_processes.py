"""Children of a process that has an LLM: a forked one is told that it cannot use it, a spawned one makes its own."""

import os
import subprocess
import sys

import pytest

from apex_jax import LLM, SamplingParams

PROMPTS = [{"prompt_token_ids": [5, 6, 7]}]
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def tokens(llm):
    return llm.generate(PROMPTS, GREEDY, use_tqdm=False)[0].outputs[0].token_ids


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("use", ["generate", "stream", "stats", "close", "warm_up", "explain"])
def test_a_forked_child_is_told(use, config, weights, capfd):
    sizes = {"device_kv_tokens": 128, "host_kv_bytes": 1 << 20, "strategy": "async_overlap"}
    llm = LLM.from_params(config, weights, **sizes)
    first = tokens(llm)
    child = os.fork()
    if not child:
        try:
            if use in ("generate", "stream"):
                list(getattr(llm, use)(PROMPTS, GREEDY))
            else:
                getattr(llm, use)()
        except RuntimeError as error:
            os.write(2, str(error).encode())
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    told = capfd.readouterr().err
    assert f"this LLM was made in process {os.getpid()}, and a forked child (process {child}) cannot use it" in told
    assert tokens(llm) == first
    llm.close()


SPAWNING = """
import multiprocessing
from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.models import random_weights

CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128, eos_token_ids=(11,),
)


def tokens(_=None):
    weights = random_weights(CONFIG, 3, "float32")
    llm = LLM.from_params(CONFIG, weights, device_kv_tokens=128, host_kv_bytes=1 << 20, strategy="async_overlap")
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": [5, 6, 7]}], params, use_tqdm=False)[0].outputs[0].token_ids
    llm.close()
    return found


if __name__ == "__main__":
    here = tokens()
    with multiprocessing.get_context("spawn").Pool(1) as children:
        assert children.map(tokens, [None]) == [here], here
    print("alike")
"""


def test_a_spawned_child_makes_its_own(tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "alike\n"
