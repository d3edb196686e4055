"""Rollouts from an NNX model that optax trains: REINFORCE on a toy reward, on a CPU in seconds.

The reward of a completion is the share of its tokens that are even. Run it with `python examples/rollouts_nnx.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.models import forward, weights_from_params
from apex_jax.models.loading.hf_names import checkpoint_shapes

CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
)
PROMPT, LENGTH, ROLLOUTS, STEPS = [1, 2, 3], 8, 32, 8


class Policy(nnx.Module):
    """A model with Hugging Face's names; `apex_jax` reads its arrays, and `forward` differentiates them."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.params = nnx.Dict(
            {
                name.replace(".", "/"): nnx.Param(jnp.asarray(rng.normal(len(shape) == 1, 0.1, shape), jnp.float32))
                for name, shape in checkpoint_shapes(CONFIG).items()
            }
        )


def hf_names(named):
    """The mapping of `from_params` and `update_params`: own names to Hugging Face's."""
    return {name.replace("/", "."): array for name, array in named.items()}


def loss(policy, tokens, advantages):
    """Return the policy gradient's loss of completions [R, T] behind the prompt."""
    weights = weights_from_params(CONFIG, policy, dtype="float32", mapping=hf_names)
    logits = forward(CONFIG, weights, tokens)[:, len(PROMPT) - 1 : -1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, len(PROMPT) :, None], axis=-1)[..., 0]
    return -jnp.mean(advantages[:, None] * chosen)


def main() -> list[float]:
    """Train and return the mean reward of each step."""
    policy = Policy(0)
    optimizer = nnx.Optimizer(policy, optax.adam(1e-2), wrt=nnx.Param)
    llm = LLM.from_params(CONFIG, policy, mapping=hf_names, device_kv_tokens=2048, max_num_seqs=ROLLOUTS)
    gradient = nnx.jit(nnx.grad(loss))
    rewards = []
    for step in range(STEPS):
        params = SamplingParams(n=ROLLOUTS, seed=step, max_tokens=LENGTH, ignore_eos=True)
        outputs = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)[0].outputs
        tokens = np.array([[*PROMPT, *output.token_ids] for output in outputs])
        reward = (tokens[:, len(PROMPT) :] % 2 == 0).mean(axis=1)
        advantages = (reward - reward.mean()).astype(np.float32)
        optimizer.update(policy, gradient(policy, jnp.asarray(tokens), jnp.asarray(advantages)))
        llm.update_params(policy, mapping=hf_names)
        rewards.append(float(reward.mean()))
        print(f"step {step}: reward {rewards[-1]:.3f}")
    return rewards


if __name__ == "__main__":
    main()
