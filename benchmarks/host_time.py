"""What the host costs a decode step: the device's work is made trivial, so that scheduling and dispatch remain.

    python benchmarks/host_time.py [--layers 16 32] [--rows 1 16] [--json]

A model whose matrices are 16 wide decodes many tokens, with an attention that returns its query. The time from one step
to the next is then the host's: scheduling, packing, handing the compiled step and the sampler to the device, taking in
the tokens of the step before. `dispatch` is the part that packs and hands over, `step` is all of it; both hold what
the CPU backend takes to run a program of many trivial operations, so they are upper bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from apex_jax import LlamaConfig, SamplingParams
from apex_jax.buckets import Buckets
from apex_jax.engine import Engine
from apex_jax.executor import Executor
from apex_jax.jax_device import JaxDevice
from apex_jax.models import random_weights
from apex_jax.stopping import OutputStream

STEPS = 400


def trivial_attention(q: Array, k: Array, v: Array, kv: Array, table: Array, lengths: Array) -> tuple[Array, Array]:
    return q, kv


def build(layers: int, rows: int) -> Engine:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
    )
    buckets = Buckets(
        max_num_seqs=rows, max_host_seqs=0, max_prefill_pages=1, page_size=64, table_width=16, ragged_attention=True
    )
    device = JaxDevice(
        config,
        random_weights(config, 0, jnp.float32),
        attention=trivial_attention,
        device=jax.devices()[0],
        num_pages=16 * rows,
        buckets=buckets,
        eos_token_ids=(),
    )
    return Engine(Executor(device))


def run(engine: Engine, rows: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=STEPS)
    for index in range(rows):
        stream = OutputStream(params, None, eos_token_ids=())
        engine.add(engine.prepare([1], params, stream, seed=0, index=index))
    while engine.has_unfinished:
        engine.step()


def timed(function: Callable, times: list[float]) -> Callable:
    def call(*args):
        start = time.perf_counter()
        result = function(*args)
        times.append(time.perf_counter() - start)
        return result

    return call


def measure(layers: int, rows: int) -> dict[str, float]:
    """Return median host microseconds of a decode step with this many requests."""
    engine = build(layers, rows)
    run(engine, rows)
    dispatches, steps = [], []
    engine.executor.submit = timed(engine.executor.submit, dispatches)
    engine.step = timed(engine.step, steps)
    run(engine, rows)
    middle = slice(STEPS // 4, -STEPS // 4)
    return {
        "layers": layers,
        "rows": rows,
        "step_us": statistics.median(steps[middle]) * 1e6,
        "dispatch_us": statistics.median(dispatches[middle]) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [measure(layers, count) for layers in args.layers for count in args.rows]
    if args.json:
        print(json.dumps({"jax": jax.__version__, "cores": os.cpu_count(), "rows": rows}, indent=2))
        return
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, CPU backend, trivial maths")
    print("layers  rows  step us  dispatch us")
    for row in rows:
        print(f"{row['layers']:6d} {row['rows']:5d} {row['step_us']:8.0f} {row['dispatch_us']:12.0f}")


if __name__ == "__main__":
    main()
