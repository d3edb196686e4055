"""How far apart a token's logits are by decode and by prefill, and both from float32 arithmetic, in each number type.

    python benchmarks/half_types.py [--dtypes bfloat16 float16 float32] [--json]

SmolLM2-135M-Instruct on a text of 320 tokens; for each of the last 40 the greatest difference over the vocabulary.
Float32 arithmetic means the same rounded weights with everything else in float32.
"""

from __future__ import annotations

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax.execution.attention_backend import device_attention_for
from apex_jax.execution.page_writes import write_tiles
from apex_jax.execution.paged_attention import prefill_attention
from apex_jax.models import LlamaConfig, Weights, forward, llama, load_model

MODEL = "smollm2-135m-instruct"
TEXT = "The history of the Roman Empire begins with the fall of the Republic. "
PAGE, LENGTH, COMPARED = 64, 320, 40


def prefill(config: LlamaConfig, weights: Weights, ids: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Return logits [T, V] of a prompt of whole pages, and the cache of each layer."""
    pages = jnp.arange(ids.shape[0] // PAGE)
    x, turn = llama.embed(config, weights, ids), llama.rotation(config, jnp.arange(ids.shape[0]))
    table, caches = jnp.tile(pages[None], (len(pages), 1)), []
    for layer in weights.layers:
        q, k, v = (a.reshape(len(pages), PAGE, *a.shape[1:]) for a in llama.pre_attention(config, layer, x, turn))
        empty = jnp.zeros((len(pages), config.num_key_value_heads, 2, PAGE, config.head_dim), weights.dtype)
        caches.append(write_tiles(empty, pages, k, v))
        out = prefill_attention(q, caches[-1], table, pages * PAGE, one_request=True)
        x = llama.post_attention(config, layer, x, out.reshape(-1, *q.shape[2:]))
    return llama.logits(config, weights, x), caches


def decode(
    config: LlamaConfig, weights: Weights, caches: list[jax.Array], token: jax.Array, length: jax.Array
) -> jax.Array:
    """Return logits [V] of one token at position `length - 1`."""
    attention = device_attention_for(jax.devices()[0], config.head_dim).append_and_attend
    x, turn = llama.embed(config, weights, token[None]), llama.rotation(config, (length - 1)[None])
    table = jnp.arange(LENGTH // PAGE, dtype=jnp.int32)[None]
    for layer, cache in zip(weights.layers, caches, strict=True):
        q, k, v = llama.pre_attention(config, layer, x, turn)
        out, _ = attention(q, k, v, cache, table, length[None], None)
        x = llama.post_attention(config, layer, x, out)
    return llama.logits(config, weights, x)[0]


def measure(dtype: str) -> dict[str, float | str]:
    """Return medians of the greatest differences of one number type."""
    model = load_model(MODEL, dtype=dtype)
    assert model.tokenizer is not None
    config, weights = model.config, model.weights
    ids = jnp.asarray(model.tokenizer.encode(TEXT * LENGTH)[:LENGTH], jnp.int32)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
    exact = np.asarray(jax.jit(functools.partial(forward, config))(wide, ids[None]))[0]
    logits, caches = jax.jit(functools.partial(prefill, config))(weights, ids)
    step = jax.jit(functools.partial(decode, config))
    compared = range(LENGTH - COMPARED, LENGTH)
    by_decode = np.stack([np.asarray(step(weights, caches, ids[p], jnp.int32(p + 1))) for p in compared])
    by_prefill, exact = np.asarray(logits)[compared], exact[compared]

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.median(np.abs(a - b).max(axis=-1)))

    return {
        "dtype": dtype,
        "decode_prefill": apart(by_decode, by_prefill),
        "decode_float32": apart(by_decode, exact),
        "prefill_float32": apart(by_prefill, exact),
        "logits_std": float(exact.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [measure(dtype) for dtype in args.dtypes]
    if args.json:
        print(json.dumps({"jax": jax.__version__, "device": str(jax.devices()[0]), "rows": rows}, indent=2))
        return
    print("type      decode-prefill  decode-float32  prefill-float32  logits' std")
    for row in rows:
        numbers = [row[name] for name in ("decode_prefill", "decode_float32", "prefill_float32", "logits_std")]
        print(f"{row['dtype']:9s} {numbers[0]:14.5f} {numbers[1]:15.5f} {numbers[2]:16.5f} {numbers[3]:12.2f}")


if __name__ == "__main__":
    main()
