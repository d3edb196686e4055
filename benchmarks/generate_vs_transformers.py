"""Whole `generate` of SmolLM2-135M in float32 on the CPU, side by side with transformers on torch in one run.

    python benchmarks/generate_vs_transformers.py [--repeats 3] [--processor-time] [--json FILE]

Both run the same prompts of 64 tokens, greedy, 128 new tokens, at batch 1 and 16; and one prompt of 1,024 tokens up to
its first token. The two take turns, so that a machine that changes speed changes it for both; medians are printed. The
limit beside them is the time to read all weights once a step at this machine's streaming-read speed, measured in the
same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers

from apex_jax import LLM, SamplingParams
from apex_jax.models.loading.gguf_file import open_gguf
from apex_jax.models.loading.gguf_source import GGUFSource, config_from_gguf
from apex_jax.models.loading.registry import fetch

MODEL = "smollm2-135m-instruct"
PROMPT_TOKENS, NEW_TOKENS, LONG_PROMPT = 64, 128, 1024


def stream_read_gb_per_s(repeats: int = 3) -> float:
    """Return the speed at which torch sums half a gigabyte of floats with all its threads."""
    block = torch.ones(128 * 2**20)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - start)
    return block.numel() * 4 / min(times) / 1e9


def load_transformers() -> transformers.LlamaForCausalLM:
    """Return transformers' model with the same weights, which it could read itself only with one more package."""
    file = open_gguf(fetch(MODEL))
    config = config_from_gguf(file)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=config.bos_token_id,
            eos_token_id=list(config.eos_token_ids),
        )
    )
    source = GGUFSource(file, config, np.dtype(np.float32))
    tensors = {name: torch.from_numpy(np.array(source.read(name))) for name in source.shapes}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return model.eval()


def ours(llm: LLM, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    return [result.outputs[0].token_ids for result in llm.generate(prompts, params, use_tqdm=False)]


def theirs(model: transformers.PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
    return out[:, ids.shape[1] :].tolist()


def timed(function: Callable[[], list[list[int]]], clock: Callable[[], float]) -> tuple[float, list[list[int]]]:
    start = clock()
    out = function()
    return clock() - start, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor seconds of all threads, which other programs disturb less; give both sides one thread "
        "then (OMP_NUM_THREADS=1 taskset -c 0 ...), for waiting threads count too",
    )
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    clock = time.process_time if args.processor_time else time.perf_counter

    llm = LLM(MODEL, dtype="float32", device_kv_tokens=8192, max_num_seqs=16)
    model = load_transformers()
    rng = np.random.default_rng(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return rng.integers(10, 40_000, (count, length)).tolist()

    cases = {
        "batch 1, tokens/s": (prompts(1, PROMPT_TOKENS), NEW_TOKENS),
        "batch 16, tokens/s": (prompts(16, PROMPT_TOKENS), NEW_TOKENS),
        f"first token of {LONG_PROMPT}, s": (prompts(1, LONG_PROMPT), 1),
    }
    for batch, new_tokens in cases.values():  # compiles ours, warms theirs
        ours(llm, batch, min(new_tokens, 4))
        theirs(model, batch, min(new_tokens, 4))
    rows = []
    weight_bytes = llm.config.num_parameters * 4
    for name, (batch, new_tokens) in cases.items():
        times: dict[str, list[float]] = {"apex_jax": [], "transformers": []}
        reads, same = [], 0
        for _ in range(args.repeats):
            reads.append(stream_read_gb_per_s())
            seconds, tokens = timed(lambda batch=batch, n=new_tokens: ours(llm, batch, n), clock)
            times["apex_jax"].append(seconds)
            seconds, expected = timed(lambda batch=batch, n=new_tokens: theirs(model, batch, n), clock)
            times["transformers"].append(seconds)
            same = sum(a == b for a, b in zip(tokens, expected, strict=True))
        medians = {who: statistics.median(values) for who, values in times.items()}
        ratio = statistics.median(t / o for o, t in zip(times["apex_jax"], times["transformers"], strict=True))
        row = {
            "case": name,
            "apex_jax_s": medians["apex_jax"],
            "transformers_s": medians["transformers"],
            "speedup": ratio,
            "same_tokens": f"{same}/{len(batch)}",
            "read_limit_s": new_tokens * weight_bytes / statistics.median(reads) / 1e9,
            "stream_read_gb_per_s": statistics.median(reads),
        }
        rows.append(row)
        amount = len(batch) * new_tokens
        if "tokens/s" in name:
            shown = f"{amount / medians['apex_jax']:8.1f} {amount / medians['transformers']:13.1f}"
        else:
            shown = f"{medians['apex_jax']:8.2f} {medians['transformers']:13.2f}"
        print(f"{name:26s} {shown} {ratio:8.2f}x  same tokens {row['same_tokens']}", flush=True)
    setup = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": llm.attention_name,
        "model": MODEL,
        "dtype": "float32",
        "clock": "processor time" if args.processor_time else "wall clock",
    }
    print(json.dumps(setup))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"setup": setup, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
