"""Device and host on two CPU devices of JAX, which only a process of its own can have."""

import subprocess
import sys
import textwrap

SCRIPT = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.models import forward, random_weights

config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=16, max_position_embeddings=128)
weights = random_weights(config, 0, "float32")
device, host = jax.devices()
llm = LLM.from_params(config, weights, device=device, page_size=16, max_num_seqs=1, max_host_seqs=2,
                      max_num_batched_tokens=16, device_kv_tokens=64, host_kv_bytes=1 << 16, strategy="async_overlap")
executor = llm.engine.executor


def places():
    found = {place for layer in executor.worker.layers for place in layer.devices()}
    assert found == {host}, found
    found = {place for cache in executor.device.runner.caches for place in cache.devices()}
    assert found == {device}, found


places()
before = executor.worker.layers[0].unsafe_buffer_pointer()
rng = np.random.default_rng(0)
prompts = [rng.integers(0, 64, length).tolist() for length in (3, 20, 9, 33)]
outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), use_tqdm=False)
for prompt, output in zip(prompts, outputs):
    tokens = output.outputs[0].token_ids
    logits = forward(config, weights, np.asarray([prompt + tokens], np.int32))[0, len(prompt) - 1:-1]
    assert logits.argmax(-1).tolist() == tokens
stats = llm.stats()
assert stats.host_tokens > 10 and stats.evictions > 0, stats
places()
# Nothing has copied the cache.
assert executor.worker.layers[0].unsafe_buffer_pointer() == before
print("right", flush=True)
"""


def test_the_device_is_another_one_than_the_host():
    """As on a machine with a GPU, the host is not JAX's default device."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=500)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
