"""An outside baseline: transformers on torch decodes with the same shapes and as many requests as the KV budget
holds."""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from typing import Any

from decode import PAGE_SIZE, TINY
from report import Report, Table, open_report

from apex_jax import LlamaConfig
from apex_jax.execution.model_shape import shape_of
from apex_jax.models import preset

PROMPT, SHORT, LONG = 468, 8, 72
"""Tokens of prompts, and new tokens of two runs whose difference is decoding alone, at contexts of 500 on average."""


def main() -> int:
    """Measure, or say why not."""
    report, args = open_report()
    if importlib.util.find_spec("torch") is None:
        report.fail("transformers on torch: left out, torch is not installed")
        return 0
    import torch

    if not args.tiny and not torch.cuda.is_available():
        report.fail(f"transformers on torch: left out, torch {torch.__version__} has no CUDA here")
        return 0
    table = report.table(
        f"transformers' generate, torch {torch.__version__}, bfloat16, greedy",
        *("model", "layers", "KV GiB", "rows", "prompt", "tokens/s", "ms a step"),
    )
    budgets = (1.0, 0.5, 2.0, 4.0)
    for name in ("tiny",) if args.tiny else ("llama-3.1-8b", "llama-2-7b"):
        with report.attempt(name):
            measure(report, table, name, TINY if args.tiny else preset(name), budgets[:1] if args.tiny else budgets)
    return 0


def measure(report: Report, table: Table, name: str, config: LlamaConfig, budgets: tuple[float, ...]) -> None:
    """Measure one model."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(config, device)
    prompt, short, longer = (PROMPT, SHORT, LONG) if device == "cuda" else (20, 2, 6)
    for budget in budgets:
        tokens = int(budget * 2**30) // shape_of(config, "bfloat16").kv_bytes_per_token
        pages = -(-(prompt + longer) // PAGE_SIZE)
        rows = 2 if device == "cpu" else tokens // (pages * PAGE_SIZE)
        if rows < 1 or report.left < 5:
            report.fail(f"{name}, {budget} GiB: left out, {rows} requests fit, {report.left:.0f} s are left")
            continue
        with report.attempt(f"{name}, {budget} GiB"):
            ids = torch.randint(3, config.vocab_size, (rows, prompt), device=device)
            generate(model, ids, short)
            differences = [generate(model, ids, longer) - generate(model, ids, short) for _ in range(3)]
            step = statistics.median(differences) / (longer - short)
            table.add(name, config.num_hidden_layers, budget, rows, prompt, rows / step, 1e3 * step)


def build(config: LlamaConfig, device: str) -> Any:
    """Return transformers' model of the same shapes with random weights."""
    import torch
    import transformers

    theirs = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        return transformers.LlamaForCausalLM(theirs).eval()


def generate(model: Any, ids: Any, count: int) -> float:
    """Return the seconds that so many new tokens take, the prompts included."""
    import torch

    begin = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
        )
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
