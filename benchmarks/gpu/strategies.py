"""All strategies with little KV cache on the device: tokens a second beside what the cost model says.

Every strategy gets the same requests. What is measured begins when no prompt is being computed any more and every
cohort has made a token, and ends before the first request does.
"""

from __future__ import annotations

import functools
import gc
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from decode import DTYPE, PAGE_SIZE, TINY, fitting
from report import Report, Table, facts_of, open_report

import apex_jax.engine.executor_factory
from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.engine.capacity import free_memory
from apex_jax.engine.stats import EngineStats
from apex_jax.execution.model_shape import shape_of
from apex_jax.host_offload import available_memory
from apex_jax.machine.processor import usable_cores
from apex_jax.models import preset, random_weights
from apex_jax.scheduler import STRATEGIES, CostModel, DeviceSpec, HostSpec, Load, describe
from apex_jax.scheduler.strategies import named
from apex_jax.scheduler.strategies.steady import steady

PROMPT, OUTPUT = 420, 192
CONTEXT = 500
WINDOW = 64
"""Iterations that are measured."""

TRACED = 4
"""Iterations that are traced."""

BUDGETS_GIB = (1, 0.5, 2, 4)
MOST_HOST_ROWS = 256
COHORTS = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, its weights and what it is run with."""

    name: str
    config: LlamaConfig
    weights: Any
    prompt: int
    output: int
    host_rows: int
    budgets: tuple[int, ...]

    @property
    def context(self) -> int:
        """Tokens of a request's context in the middle of its life."""
        return self.prompt + self.output // 2

    def device_rows(self, budget: int) -> int:
        """Return how many whole requests so many bytes of KV hold.

        Raises:
            ValueError: not even one.
        """
        page = shape_of(self.config, self.weights.dtype).kv_bytes_per_token * PAGE_SIZE
        rows = budget // page // -(-(self.prompt + self.output) // PAGE_SIZE)
        if rows < 1:
            raise ValueError(f"{budget} bytes of KV hold no request of {self.prompt + self.output} tokens")
        return rows


def main() -> int:
    """Measure."""
    report, args = open_report()
    # One set of compiled programs for all engines.
    apex_jax.engine.executor_factory.build_programs = functools.cache(apex_jax.engine.executor_factory.build_programs)
    facts = {name: value for part in ("facts", "host", "decode") for name, value in facts_of(args.out, part).items()}
    table = report.table(
        "predicted: by the rates measured above",
        *(
            "model",
            "layers",
            "KV GiB",
            "strategy",
            "device rows",
            "host rows",
            "tokens/s",
            "predicted",
            "achieved / predicted",
        ),
        *("x device_only", "ms a device token", "ms a host token", "host busy", "evictions"),
    )
    in_place = report.table(
        "the same, predicted by a profile measured in place afterwards",
        *("model", "KV GiB", "strategy", "tokens/s", "predicted", "achieved / predicted"),
    )
    bench = Bench(report=report, table=table, in_place=in_place, out=args.out)
    models = ("tiny",) if args.tiny else ("llama-3.1-8b", "llama-2-7b")
    # What matters most comes first for both models; two of them do not fit into every GPU at once.
    for first in (True, False):
        for name in models:
            with report.attempt(name):
                setting = prepare(name, tiny=args.tiny)
                model = cost_model(setting, facts)
                if first:
                    bench.measure(setting, model, setting.budgets[0])
                else:
                    for budget in setting.budgets[1:]:
                        bench.measure(setting, model, budget)
                    bench.decide(setting, model, setting.budgets[0])
                del setting
                gc.collect()
    return 0


def prepare(name: str, *, tiny: bool) -> Setting:
    """Draw the weights of a model, or of as many of its layers as fit twice."""
    if tiny:
        weights = random_weights(TINY, 0, jnp.float32)
        budget = 8 * PAGE_SIZE * shape_of(TINY, jnp.dtype(jnp.float32)).kv_bytes_per_token
        return Setting(name=name, config=TINY, weights=weights, prompt=70, output=60, host_rows=8, budgets=(budget,))
    config = preset(name)
    config = config.replace(num_hidden_layers=max(1, fitting(config, 64, CONTEXT).num_hidden_layers))
    token = shape_of(config, DTYPE).kv_bytes_per_token
    rows = int(available_memory() / 2 / (token * (PROMPT + OUTPUT)))
    return Setting(
        name=name,
        config=config,
        weights=random_weights(config, 0, DTYPE, device=jax.devices()[0]),
        prompt=PROMPT,
        output=OUTPUT,
        host_rows=min(MOST_HOST_ROWS, rows),
        budgets=tuple(int(gib * 2**30) for gib in BUDGETS_GIB),
    )


def cost_model(setting: Setting, facts: dict[str, Any]) -> CostModel | None:
    """Return the cost model of the rates that earlier sections have measured; None where one of them is missing."""
    config, dtype = setting.config, setting.weights.dtype
    shape = shape_of(config, dtype, name=setting.name)
    heads = f"{shape.num_heads}/{shape.num_kv_heads}/{shape.head_dim}"
    copied = facts.get("copy_bytes_per_s")
    needed = (copied, facts.get(setting.name), facts.get("to_device_latency_s"), facts.get("to_host_latency_s"))
    if any(value is None for value in needed):
        return None
    device = DeviceSpec(
        name=facts["device"],
        memory_gb=free_memory(jax.devices()[0]) / 1e9,
        weights_gb_per_s=facts.get(f"{setting.name} weights bytes per s", copied) / 1e9,
        attention_gb_per_s=facts.get(f"attention {heads} bytes per s", copied) / 1e9,
        tflops=facts["flops_per_s"] / 1e12,
        link_gb_per_s=min(facts["to_device_bytes_per_s"], facts["to_host_bytes_per_s"]) / 1e9,
        link_us=(facts["to_device_latency_s"] + facts["to_host_latency_s"]) * 1e6,
    )
    host = HostSpec(
        name=facts["host"],
        cores=usable_cores(),
        memory_gb=available_memory() / 1e9,
        attention_gb_per_s=facts[setting.name] / 1e9,
        job_us=facts["latency_us"],
    )
    profile = describe(device=device, host=host, model=shape, page_size=PAGE_SIZE)
    stepwise = facts.get(f"{setting.name} stepwise overhead s", 0.0)
    return CostModel(replace(profile, stepwise_overhead=max(0.0, stepwise)))


def lanes_of(strategy: str, host_rows: int, num_layers: int) -> tuple[int, ...]:
    """Return a fixed strategy's cohorts."""
    return named(strategy).fixed_lanes(host_rows, COHORTS, num_layers) if host_rows else ()


def predicted(model: CostModel | None, strategy: str, found: Found, context: int) -> float | None:
    """Return the tokens a second of a fixed strategy with the rows that were found."""
    if model is None or strategy not in STRATEGIES:
        return None
    device_rows, lanes = round(found.device_rows), lanes_of(strategy, round(found.host_rows), model.profile.num_layers)
    load = Load(device_rows=device_rows, device_kv_tokens=device_rows * context)
    # Without rows on the host every strategy is this one.
    return steady(model.costs, strategy if lanes else "device_only", load, lanes, context).tokens_per_s


def host_rows_for(model: CostModel | None, strategy: str, device_rows: int, setting: Setting) -> int:
    """Return how many host requests are worth most, by prediction; the most there can be without one."""
    if strategy == "device_only":
        return 0
    counts = [2**i for i in range(1, 12) if 2**i <= setting.host_rows]
    if model is None:
        return counts[-1]
    load = Load(device_rows=device_rows, device_kv_tokens=device_rows * setting.context)
    return max(
        counts,
        key=lambda rows: (
            steady(
                model.costs, strategy, load, lanes_of(strategy, rows, model.profile.num_layers), setting.context
            ).tokens_per_s
        ),
    )


@dataclass(kw_only=True)
class Bench:
    """The tables under way, and what was found of the model and budget under way."""

    report: Report
    table: Table
    in_place: Table
    out: Path
    longest: float = 0.0
    found: dict[tuple[str, int], dict[str, Found]] = field(default_factory=dict)

    def measure(self, setting: Setting, model: CostModel | None, budget: int) -> None:
        """Measure the strategies with one budget of KV on the device."""
        for strategy in STRATEGIES:
            self._run(setting, model, budget, strategy)

    def decide(self, setting: Setting, model: CostModel | None, budget: int) -> None:
        """Measure a profile, say what it would have predicted, and let it decide."""
        found = self.found.get((setting.name, budget), {})
        if self.report.left < 2 * self.longest:
            self.report.fail(f"{setting.name}, profile and auto: left out, {self.report.left:.0f} s are left")
            return
        with self.report.attempt(f"{setting.name}, profile"):
            run = Run(setting, "device_only", budget=budget, host_rows=0)
            profiled = CostModel(run.llm.profile(again=True))
            for strategy, each in found.items():
                expected = predicted(profiled, strategy, each, setting.context)
                self.in_place.add(
                    *(setting.name, budget / 2**30, strategy, each.tokens_per_s, expected),
                    expected and each.tokens_per_s / expected,
                )
            del run
        self._run(setting, model, budget, "auto")

    def _run(self, setting: Setting, model: CostModel | None, budget: int, strategy: str) -> None:
        found = self.found.setdefault((setting.name, budget), {})
        gib = budget / 2**30
        what = f"{setting.name}, {gib:g} GiB, {strategy}"
        if self.report.left < self.longest:
            self.report.fail(f"{what}: left out, {self.report.left:.0f} s are left")
            return
        begin = time.monotonic()
        with self.report.attempt(what):
            rows = setting.device_rows(budget)
            hosted = host_rows_for(model, "async_overlap" if strategy == "auto" else strategy, rows, setting)
            run = Run(setting, strategy, budget=budget, host_rows=hosted)
            each = run.measure(self.report, self.out / f"trace_{setting.name}_{gib:g}GiB_{strategy}.json")
            if strategy == "auto":
                (self.out / f"explain_{setting.name}_{gib:g}GiB.txt").write_text(run.llm.explain())
            else:
                found[strategy] = each
            expected = predicted(model, strategy, each, setting.context)
            alone = found["device_only"].tokens_per_s if "device_only" in found else None
            self.table.add(
                *(setting.name, setting.config.num_hidden_layers, gib, strategy, each.device_rows, each.host_rows),
                *(each.tokens_per_s, expected, expected and each.tokens_per_s / expected),
                *(alone and each.tokens_per_s / alone, each.device_token_ms, each.host_token_ms),
                *(each.host_busy, each.evictions),
            )
            del run
        self.longest = max(self.longest, time.monotonic() - begin)
        gc.collect()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a window of iterations has shown."""

    device_rows: float
    host_rows: float
    tokens_per_s: float
    device_token_ms: float | None
    host_token_ms: float | None
    host_busy: float
    evictions: int


class Run:
    """A strategy with its requests on an engine of its own.

    Args:
        setting: the model.
        strategy: as in `EngineOptions`.
        budget: bytes of KV on the device.
        host_rows: requests beyond those.
    """

    def __init__(self, setting: Setting, strategy: str, *, budget: int, host_rows: int) -> None:
        config = setting.config
        token = shape_of(config, setting.weights.dtype).kv_bytes_per_token
        pages = -(-(setting.prompt + setting.output) // PAGE_SIZE)
        device_rows = setting.device_rows(budget)
        self.layers = config.num_hidden_layers
        self.llm = LLM.from_params(
            config,
            setting.weights,
            device_kv_bytes=budget,
            host_kv_bytes=setting.host_rows * pages * PAGE_SIZE * token,
            max_num_seqs=2 * device_rows,
            max_host_seqs=setting.host_rows,
            max_model_len=min(pages * PAGE_SIZE, budget // token // PAGE_SIZE * PAGE_SIZE),
            max_num_batched_tokens=2048,
            page_size=PAGE_SIZE,
            strategy=strategy,
            num_cohorts=COHORTS,
        )
        rng = np.random.default_rng(0)
        count = device_rows + host_rows
        self.prompts = rng.integers(3, config.vocab_size, (count, setting.prompt)).tolist()
        self.params = SamplingParams(temperature=0, max_tokens=setting.output, ignore_eos=True)
        self.window = min(WINDOW, setting.output // 3)

    def measure(self, report: Report, trace: Path) -> Found:
        """Return what the window shows; a few iterations after it are written as a trace."""
        # Compilations come in a run of their own.
        self._iterate(report, None)
        return self._iterate(report, trace)

    def _iterate(self, report: Report, trace: Path | None) -> Found:
        stream = self.llm.stream(self.prompts, self.params)
        try:
            steps = self._steps(stream)
            started = self._settle(steps, report)
            begin = time.perf_counter()
            seen = [started]
            for stats in steps:
                seen.append(stats)
                if stats.iterations >= started.iterations + self.window or report.left < 2:
                    break
            seconds = time.perf_counter() - begin
            if trace is not None:
                with self.llm.recording() as recorder:
                    end = seen[-1].iterations + TRACED
                    next((stats for stats in steps if stats.iterations >= end), None)
                recorder.save(trace)
            return _found(seen, seconds)
        finally:
            stream.close()
            self.llm.close()

    def _steps(self, stream: Iterator[Any]) -> Iterator[EngineStats]:
        """Yield the engine's counts once an iteration that has told something."""
        last = -1
        for item in stream:
            if item.finished:
                return
            stats = self.llm.stats()
            if stats.iterations != last:
                last = stats.iterations
                yield stats

    def _settle(self, steps: Iterator[EngineStats], report: Report) -> EngineStats:
        """Go on until no prompt has been computed for as long as a host request's token takes."""
        prompts, since = -1, 0
        for stats in steps:
            if stats.prompt_tokens != prompts:
                prompts, since = stats.prompt_tokens, stats.iterations
            rest = 2 if not stats.on_host else min(self.layers + 1, self.window)
            if stats.iterations >= since + rest:
                return stats
            if report.left < 4:
                break
        raise TimeoutError("prompts were still being computed, or requests ended, before anything could be measured")


def _found(seen: list[EngineStats], seconds: float) -> Found:
    first, last = seen[0], seen[-1]
    device_rows = statistics.fmean(stats.running - stats.on_host for stats in seen)
    host_rows = statistics.fmean(stats.on_host for stats in seen)
    device, host = last.device_tokens - first.device_tokens, last.host_tokens - first.host_tokens
    busy = last.host_seconds + last.move_seconds - first.host_seconds - first.move_seconds
    return Found(
        device_rows=device_rows,
        host_rows=host_rows,
        tokens_per_s=(device + host) / seconds,
        device_token_ms=1e3 * seconds * device_rows / device if device else None,
        host_token_ms=1e3 * seconds * host_rows / host if host else None,
        host_busy=busy / seconds,
        evictions=last.evictions - first.evictions,
    )


if __name__ == "__main__":
    sys.exit(main())
