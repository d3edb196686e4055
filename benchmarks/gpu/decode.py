"""Decoding on the device alone: steps beside what its memory allows, one program against one a layer, and candidates
for attention over the paged cache."""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from candidates import CANDIDATES, Attention, kernel
from report import Report, Table, facts_of, open_report
from timing import queued_seconds, seconds

from apex_jax import LlamaConfig
from apex_jax.engine.capacity import free_memory
from apex_jax.execution.batch import Buckets
from apex_jax.execution.jax_device import JaxDevice
from apex_jax.execution.model_runner import ModelRunner
from apex_jax.execution.model_shape import shape_of
from apex_jax.execution.page_writes import write_tokens
from apex_jax.execution.paged_attention import decode_attention
from apex_jax.execution.programs import DecodeAttention, build_programs
from apex_jax.models import Weights, preset, random_weights
from apex_jax.scheduler import Capacity, DecodeRow, NewPages, Plan

PAGE_SIZE = 64
DTYPE = jnp.dtype("bfloat16")
FEW_LAYERS = 8

TINY = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
)


class Steps:
    """Decode steps of a model with random weights, as the engine runs them, without an engine.

    Args:
        config: the model.
        weights: its arrays.
        attention: (q, kv, table, lengths) -> out.
        rows, context: of every step.
    """

    def __init__(self, config: LlamaConfig, weights: Weights, attention: Attention, *, rows: int, context: int) -> None:
        pages = -(-context // PAGE_SIZE)
        self.layers = config.num_hidden_layers
        capacity = Capacity(
            device_kv_tokens=rows * pages * PAGE_SIZE,
            page_size=PAGE_SIZE,
            max_num_seqs=rows,
            max_prefill_tokens=PAGE_SIZE,
        )
        runner = ModelRunner(
            config,
            weights,
            programs=build_programs(config, appending(attention), PAGE_SIZE),
            device=jax.devices()[0],
            buckets=Buckets(capacity=capacity, table_width=pages, ragged_attention=True),
        )
        self.device = JaxDevice(runner)
        order = np.random.default_rng(0).permutation(rows * pages).reshape(rows, pages)
        decode = tuple(DecodeRow(request_id=row, slot=row, length=context, step=1) for row in range(rows))
        self.plan = Plan(number=0, strategy="device_only", num_layers=self.layers, decode=decode)
        pages = tuple(NewPages(slot=s, first=0, pages=tuple(map(int, ids))) for s, ids in enumerate(order))
        self.device.begin(replace(self.plan, new_pages=pages))

    def whole(self) -> Any:
        """Dispatch a step as one program, and its sampling."""
        self.device.run_decode(self.plan)
        return self.device.sample(self.plan, ())

    def layer_by_layer(self) -> Any:
        """Dispatch a step as one program a layer, and its sampling."""
        self.device.begin(self.plan)
        self.device.boundary(0, device=True, cohort=None, attended=None)
        for boundary in range(1, self.layers + 1):
            self.device.layers(boundary, 1)
        return self.device.sample(self.plan, ())


def appending(attention: Attention) -> DecodeAttention:
    """Return a device's attention, which appends first."""

    def append_and_attend(q: Any, k: Any, v: Any, kv: Any, table: Any, lengths: Any, window: None) -> tuple[Any, Any]:
        kv = write_tokens(kv, table, lengths, k, v)
        return attention(q, kv, table, lengths), kv

    return append_and_attend


def main() -> int:
    """Measure, the most telling first: each part is worth something without those after it."""
    report, args = open_report()
    facts = facts_of(args.out, "facts")
    copied = facts.get("copy_bytes_per_s", float("nan"))
    models = {"tiny": TINY} if args.tiny else {name: preset(name) for name in ("llama-3.1-8b", "llama-2-7b")}
    rows, context = (2, 100) if args.tiny else (16, 500)
    few = {
        name: config.replace(num_hidden_layers=min(FEW_LAYERS, config.num_hidden_layers))
        for name, config in models.items()
    }
    steps = report.table(
        f"a decode step and its sampling, bfloat16, beside {copied / 1e9:.0f} GB/s of copy bandwidth",
        *(
            "model",
            "layers",
            "rows",
            "context",
            "programs",
            "attention",
            "ms",
            "limit ms",
            "limit / ms",
            "dispatch ms",
            "ms, all layers",
        ),
    )
    table = report.table(
        "decode attention of one layer, append excluded",
        *("heads N/K/H", "rows", "context", "way", "us", "GB/s", "of copy bandwidth", "error", "temporary MB"),
    )
    bench = Bench(report=report, steps=steps, attention=table, copied=copied)
    first = next(iter(models))
    if not args.tiny:
        with report.attempt(f"{first}, few layers"):
            bench.decode(first, models[first], few[first], rows=rows, context=context)
    bench.best = bench.candidates(models[first], rows=2 * rows, context=context)
    for name, config in models.items():
        with report.attempt(name):
            bench.decode(name, config, fitting(config, rows, context), rows=rows, context=context)
        if not args.tiny:
            bench.candidates(config, rows=8, context=4096)
    return 0


def fitting(config: LlamaConfig, rows: int, context: int) -> LlamaConfig:
    """Return the model with as many of its layers as the free memory holds, three quarters of it at most."""
    free = 0.75 * free_memory(jax.devices()[0])
    ends = 2 * config.vocab_size * config.hidden_size * DTYPE.itemsize
    layer = (config.num_parameters * DTYPE.itemsize - ends) / config.num_hidden_layers
    layer += rows * (context + PAGE_SIZE) * shape_of(config, DTYPE).kv_bytes_per_token / config.num_hidden_layers
    layers = max(1, min(config.num_hidden_layers, int((free - ends) / layer)))
    return config.replace(num_hidden_layers=layers)


@dataclass(kw_only=True)
class Bench:
    """The tables under way and the candidate that was fastest."""

    report: Report
    steps: Table
    attention: Table
    copied: float
    best: str | None = None
    last_seconds: float = 0.0

    def decode(self, name: str, whole: LlamaConfig, config: LlamaConfig, *, rows: int, context: int) -> None:
        """Measure steps of a model, or of some of its layers."""
        needed = self.last_seconds * config.num_hidden_layers / FEW_LAYERS
        if self.report.left < needed:
            self.report.fail(f"{name}, {config.num_hidden_layers} layers: left out, {self.report.left:.0f} s are left")
            return
        begin = time.monotonic()
        weights = random_weights(config, 0, DTYPE, device=jax.devices()[0])
        moved, times = step_bytes(config, rows, context), {}
        for way in dict.fromkeys((next(iter(CANDIDATES)), self.best)):
            if way is None:
                continue
            steps = Steps(config, weights, CANDIDATES[way], rows=rows, context=context)
            for programs, call in (("one", steps.whole), ("one a layer", steps.layer_by_layer)):
                with self.report.attempt(f"{name}, {config.num_hidden_layers} layers, programs {programs}, {way}"):
                    took = queued_seconds(lambda _, call=call: call().tokens, calls=20)
                    dispatched, _ = seconds(lambda _, call=call: call())
                    limit = moved / self.copied
                    scaled = took * step_bytes(whole, rows, context) / moved
                    self.steps.add(
                        *(name, config.num_hidden_layers, rows, context, programs, way, 1e3 * took, 1e3 * limit),
                        *(limit / took, 1e3 * dispatched, 1e3 * scaled),
                    )
                    if way == next(iter(CANDIDATES)):
                        times[programs] = scaled
            del steps
        self._note_rates(name, whole, times, rows=rows, context=context)
        self.last_seconds = max(self.last_seconds, time.monotonic() - begin)

    def _note_rates(self, name: str, whole: LlamaConfig, times: dict[str, float], *, rows: int, context: int) -> None:
        """Note what the cost model of this machine takes: the rate of reading weights, with all that a step takes
        beside its attention, and what steps in many programs take more."""
        heads = f"{whole.num_attention_heads}/{whole.num_key_value_heads}/{whole.head_dim}"
        kv = rows * context * shape_of(whole, DTYPE).kv_bytes_per_token
        attended = self.report.known(f"attention {heads} bytes per s", self.copied)
        linear = times.get("one", 0.0) - kv / attended
        if linear > 0:
            self.report.fact(f"{name} weights bytes per s", (step_bytes(whole, rows, context) - kv) / linear)
        if len(times) == 2:
            self.report.fact(f"{name} stepwise overhead s", times["one a layer"] - times["one"])

    def candidates(self, config: LlamaConfig, *, rows: int, context: int) -> str | None:
        """Measure all ways to attend and return the fastest one that is right."""
        if self.report.left < 10:
            self.report.fail(f"candidates, {rows} rows of {context}: left out, no time")
            return None
        problem = Problem.make(config, rows=rows, context=context)
        fastest: tuple[float, str] | None = None
        for name, attend in CANDIDATES.items():
            if attend is kernel and jax.devices()[0].platform == "cpu":
                attend = functools.partial(kernel, interpret=True)
            with self.report.attempt(f"{name}, {rows} rows of {context}"):
                took, error, temporary = problem.measure(attend)
                rate = problem.kv_bytes / took
                self.attention.add(
                    *(problem.heads, rows, context, name, 1e6 * took, rate / 1e9, rate / self.copied),
                    *(error, temporary / 1e6),
                )
                if error < 0.02 and (fastest is None or took < fastest[0]):
                    fastest = took, name
                if attend is decode_attention:
                    self.report.fact(f"attention {problem.heads} bytes per s", rate)
        return fastest[1] if fastest else None


def step_bytes(config: LlamaConfig, rows: int, context: int) -> float:
    """Return the bytes that a decode step reads at least: all matrices once, the embedding's rows left out, and KV."""
    table = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    weights = (config.num_parameters - table) * DTYPE.itemsize
    return weights + rows * context * shape_of(config, DTYPE).kv_bytes_per_token


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows of equal length over the caches of several layers, more than a last-level cache holds."""

    heads: str
    q: jax.Array
    layers: list[jax.Array]
    table: jax.Array
    lengths: jax.Array
    kv_bytes: int

    @staticmethod
    def make(config: LlamaConfig, *, rows: int, context: int) -> Problem:
        n, k, h = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        width = -(-context // PAGE_SIZE)
        shape = (rows * width, k, 2, PAGE_SIZE, h)
        keys = jax.random.split(jax.random.key(0), 9)
        draw = jax.jit(lambda key, shape: jax.random.normal(key, shape, DTYPE), static_argnums=1)
        order = np.random.default_rng(0).permutation(rows * width).reshape(rows, width)
        return Problem(
            heads=f"{n}/{k}/{h}",
            q=draw(keys[0], (rows, n, h)),
            layers=[draw(key, shape) for key in keys[1:]],
            table=jnp.asarray(order, jnp.int32),
            lengths=jnp.full(rows, context, jnp.int32),
            kv_bytes=2 * rows * context * k * h * DTYPE.itemsize,
        )

    def measure(self, attend: Attention) -> tuple[float, float, int]:
        """Return seconds, the largest error relative to the largest output, and bytes of temporary memory."""
        compiled = jax.jit(attend).lower(self.q, self.layers[0], self.table, self.lengths).compile()
        memory = compiled.memory_analysis()
        took = queued_seconds(
            lambda i: compiled(self.q, self.layers[i % len(self.layers)], self.table, self.lengths),
            calls=8 * len(self.layers),
        )
        exact = self._exact()
        found = np.asarray(compiled(self.q, self.layers[0], self.table, self.lengths), np.float32)
        error = float(np.abs(found - exact).max() / np.abs(exact).max())
        return took, error, memory.temp_size_in_bytes if memory else 0

    def _exact(self) -> np.ndarray:
        """The same from the same numbers in float32."""
        with jax.default_matmul_precision("highest"):
            wide = jax.jit(decode_attention)(
                self.q.astype(jnp.float32), self.layers[0].astype(jnp.float32), self.table, self.lengths
            )
        return np.asarray(wide)


if __name__ == "__main__":
    sys.exit(main())
