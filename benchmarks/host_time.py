"""What the runtime itself costs: time of an iteration outside of device and host computation, with trivial maths.

Layers that add up one row of each of their matrices, an attention on the device that returns its query and one on the
host that returns zeros: what remains is Python, dispatch, threads and the hops between two CPU devices that stand in
for device and host. Programs take and return as many arrays as those of a real model.

The stand-in of the device runs its programs in the dispatching thread, so that they do not take a core from the host's
worker as no accelerator would; their time is in the numbers. With --asynchronous they have threads of their own, as is
JAX's default.

    python benchmarks/host_time.py [--layers 16 32] [--rows 1 16] [--asynchronous] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from apex_jax import SamplingParams
from apex_jax.engine.engine import Engine
from apex_jax.engine.output_processor import OutputStream
from apex_jax.execution.batch import Buckets
from apex_jax.execution.executor import Executor
from apex_jax.execution.jax_device import JaxDevice
from apex_jax.execution.model_runner import ModelRunner
from apex_jax.execution.programs import build_programs
from apex_jax.host_offload import HostKVConfig, HostWorker, allocate
from apex_jax.models import LlamaConfig, llama, random_weights
from apex_jax.scheduler import STRATEGIES, Capacity, FixedPolicy, Policy

STEPS = 400
HOST_ROWS = 16
COHORTS: dict[str, tuple[int, ...]] = {
    "device_only": (0,),
    "layer_sync": (1,),
    "asymmetric_pipelining": (2,),
    "async_overlap": (1, 2),
    "fast_lane": (1,),
}
"""Cohorts that each strategy is measured with."""

PAGE_SIZE = 64


def trivial_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, kv: jax.Array, table: jax.Array, lengths: jax.Array, window: int | None
) -> tuple[jax.Array, jax.Array]:
    return q, kv


def trivial_pre_attention(
    config: LlamaConfig, layer: llama.LayerWeights, x: jax.Array, turn: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Every array that the real one reads is read, so that programs take as many."""
    heads = (x + layer["attention_norm"]["scale"] + layer["qkv"]["kernel"][0, :16] + turn[:, 0, :1])[:, None]
    return heads, heads, heads


def trivial_post_attention(
    config: LlamaConfig, layer: llama.LayerWeights, x: jax.Array, attention: jax.Array
) -> jax.Array:
    weights = (layer[name]["kernel"][0, :16] for name in ("output", "gate_up", "down"))
    return x + attention[:, 0] + layer["mlp_norm"]["scale"] + sum(weights)


class TrivialWorker(HostWorker):
    """A host worker whose attention computes nothing; everything around it is the real one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        attend = jax.jit(lambda kv, qkv, table, lengths: (jnp.zeros_like(qkv[:, :1]), kv), donate_argnums=0)
        self.programs = replace(self.programs, attend=attend)


def build(layers: int, device_rows: int, policy: Policy, *, host_rows: int) -> Engine:
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
    capacity = Capacity(
        device_kv_tokens=16 * device_rows * PAGE_SIZE,
        host_kv_tokens=16 * host_rows * PAGE_SIZE,
        page_size=PAGE_SIZE,
        max_num_seqs=device_rows,
        max_host_seqs=host_rows,
        max_prefill_tokens=PAGE_SIZE,
    )
    runner = ModelRunner(
        config,
        random_weights(config, 0, jnp.float32),
        programs=build_programs(config, trivial_attention, PAGE_SIZE),
        device=jax.devices()[0],
        buckets=Buckets(capacity=capacity, table_width=16, ragged_attention=True),
    )
    device = JaxDevice(runner)
    if not host_rows:
        return Engine(Executor(device), policy)
    shape = HostKVConfig(num_layers=layers, num_kv_heads=1, head_width=16, page_size=PAGE_SIZE, dtype=jnp.float32)
    cache = allocate(shape, 16 * host_rows * shape.page_bytes, jax.devices()[-1])
    return Engine(Executor(device, TrivialWorker(cache, num_heads=1)), policy)


def run(engine: Engine, requests: int, iterations: int) -> list[float]:
    """Return the times of so many iterations in which all requests are under way, in seconds."""
    params, times = SamplingParams(temperature=0, max_tokens=960), []
    for index in range(requests):
        stream = OutputStream(params, None, eos_token_ids=())
        engine.add(engine.prepare([1], params, stream, seed=0, index=index))
    while engine.stats().running < requests:
        engine.step()
    for _ in range(iterations):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    engine.close()
    return times


def timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        times.append(time.perf_counter() - start)
        return result

    return call


def measure(strategy: str, cohorts: int, layers: int, rows: int) -> dict[str, Any]:
    """Return median host microseconds of an iteration with so many device rows, and host rows in cohorts."""
    hybrid = strategy != "device_only"
    host_rows = HOST_ROWS if hybrid else 0
    policy = FixedPolicy(strategy=strategy, num_cohorts=max(1, cohorts), max_host_requests=host_rows)
    engine = build(layers, rows, policy, host_rows=host_rows)
    run(engine, rows + host_rows, STEPS // 4)
    dispatches: list[float] = []
    plans: list[float] = []
    engine.executor.submit = timed(engine.executor.submit, dispatches)
    engine.scheduler.schedule = timed(engine.scheduler.schedule, plans)
    times = run(engine, rows + host_rows, STEPS)
    middle = slice(STEPS // 4, -STEPS // 4)
    return {
        "strategy": strategy,
        "cohorts": cohorts,
        "layers": layers,
        "device_rows": rows,
        "host_rows": host_rows,
        "step_us": statistics.median(times[middle]) * 1e6,
        "plan_us": statistics.median(plans[middle]) * 1e6,
        "dispatch_us": statistics.median(dispatches[middle]) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--asynchronous", action="store_true", help="programs of the device run on other threads")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_enable_async_dispatch", args.asynchronous)
    with (
        mock.patch.object(llama, "pre_attention", trivial_pre_attention),
        mock.patch.object(llama, "post_attention", trivial_post_attention),
    ):
        rows = [
            measure(strategy, cohorts, layers, count)
            for strategy in args.strategies
            for cohorts in COHORTS[strategy]
            for layers in args.layers
            for count in args.rows
        ]
    if args.json:
        print(json.dumps({"jax": jax.__version__, "cores": os.cpu_count(), "rows": rows}, indent=2))
        return
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, two CPU devices, trivial maths")
    print(
        "strategy               cohorts  layers  device rows  host rows  step us  of it plan  dispatch  step us a layer"
    )
    for row in rows:
        print(
            f"{row['strategy']:22} {row['cohorts']:7d} {row['layers']:6d} {row['device_rows']:11d} "
            f"{row['host_rows']:9d} {row['step_us']:8.0f} {row['plan_us']:11.0f} {row['dispatch_us']:9.0f} "
            f"{row['step_us'] / row['layers']:16.1f}"
        )


if __name__ == "__main__":
    main()
