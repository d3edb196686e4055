"""Compiles every program that an engine can need for a GPU that is not there.

The engine's own warm-up says which they are: it runs on descriptions of arrays instead of arrays, and each program that
it calls is compiled for the GPU instead of run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from ..engine.capacity import longest_context, plan_memory, work_of
from ..engine.executor_factory import make_buckets
from ..execution.attention_backend import default_dtype, device_attention_for
from ..execution.model_runner import ModelRunner
from ..execution.programs import ROW_COLUMNS, Programs, build_programs
from ..execution.warmup import warm_up
from ..machine.processor import usable_cores
from ..models.config import LlamaConfig
from ..models.llama import Weights, abstract_weights
from ..options import EngineOptions
from ..scheduler import Capacity
from .gpu_target import GpuTarget
from .hlo_text import is_cache, is_weight, read_program, traffic_of

STATIC = ("one_request", "mode")
"""Arguments of programs that are no arrays."""


@dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """What is known of one program from its compiled text; bytes of one execution.

    Attributes:
        name: of the program, see `apex_jax.execution.programs.Programs`.
        shape: what tells it from others of the name: prompt tokens, rows, cached tokens, ...
        temp_bytes: memory that it takes beside operands and results.
        result_bytes: memory of results that are not operands updated in place.
        kernels: how many it launches.
        bytes_read, bytes_written: what they read and write in device memory.
        fewest_bytes_read: its weights once, and the KV once of each row that is as long as its page table is wide.
        copies: kernels that only move weights or KV: kernel, of, nbytes.
        updated_in_place: whether every cache that it returns is the one that it took.
    """

    name: str
    shape: str
    temp_bytes: int
    result_bytes: int
    kernels: int
    bytes_read: int
    bytes_written: int
    fewest_bytes_read: int
    copies: list[dict[str, Any]]
    updated_in_place: bool


class AbsentGpu:
    """Stands for the device of an engine: what `plan_memory` and the choice of types ask of one.

    Args:
        target: the GPU.
        fraction: share of its memory that JAX may allocate, see XLA_PYTHON_CLIENT_MEM_FRACTION.
    """

    platform = "gpu"

    def __init__(self, target: GpuTarget, fraction: float) -> None:
        self.target = target
        self.compute_capability = target.compute_capability
        self._limit = int(target.memory * fraction)

    def memory_stats(self) -> dict[str, int]:
        """Return the memory that JAX would say it has."""
        return {"bytes_limit": self._limit, "bytes_in_use": 0}

    def __str__(self) -> str:
        return self.target.name


def sharding_for(target: GpuTarget) -> NamedSharding:
    """Return the placement of arrays that makes JAX compile for a GPU.

    Raises:
        RuntimeError: the CUDA plugin is not there, or does not know the description.
    """
    described = topologies.get_topology_desc(platform="cuda", target_config=target.text, topology="1x1x1")
    return NamedSharding(topologies.make_mesh(described, (1,), ("x",)), PartitionSpec())


class _AbstractRunner(ModelRunner):
    """A model runner of descriptions of arrays."""

    def _sent(self, weights: Weights) -> Weights:
        return weights

    def _empty(self, shape: tuple[int, ...]) -> jax.Array:
        return cast(jax.Array, jax.ShapeDtypeStruct(shape, self.dtype))


class Compiler:
    """Compiles programs for a GPU, each shape once and as many at a time as there are processors.

    Args:
        target: the GPU.
        page_size: tokens of a KV page.
    """

    def __init__(self, target: GpuTarget, *, page_size: int) -> None:
        self._page_size = page_size
        self._sharding = sharding_for(target)
        self._found: dict[Any, Any] = {}
        self._compiling: list[Future[CompiledProgram]] = []
        self._threads = ThreadPoolExecutor(usable_cores())

    def __len__(self) -> int:
        return len(self._compiling)

    def instead_of(self, programs: Programs) -> Programs:
        """Return programs that are compiled when they are called, and return descriptions of their results."""
        called = {f.name: self._compiled(f.name, getattr(programs, f.name)) for f in fields(Programs)}
        return Programs(**called)

    def _compiled(self, name: str, program: Any) -> Callable[..., Any]:
        def described(*args: Any, **kwargs: Any) -> Any:
            static = {key: kwargs.pop(key) for key in STATIC if key in kwargs}
            args, kwargs = jax.tree.map(self._place, (args, kwargs))
            leaves, structure = jax.tree.flatten((args, kwargs))
            key = (name, tuple((a.shape, str(a.dtype)) for a in leaves), structure, tuple(static.items()))
            if key not in self._found:
                lowered = program.lower(*args, **kwargs, **static)
                self._found[key] = jax.tree.map(self._place, lowered.out_info)
                batch = _batch(name, leaves, static, self._page_size)
                self._compiling.append(self._threads.submit(_compile, name, batch, lowered))
            return self._found[key]

        return described

    def _place(self, array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(array), array.dtype, sharding=self._sharding)

    def programs(self) -> Iterator[CompiledProgram]:
        """Yield what was compiled, in order."""
        try:
            for future in self._compiling:
                yield future.result()
        finally:
            self._threads.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class PlannedEngine:
    """An engine on a GPU that is not there.

    Attributes:
        config, dtype: the model and the type of its weights and KV.
        capacity: what it holds.
        work_bytes: what is kept free for its programs.
        max_model_len: the longest context.
    """

    config: LlamaConfig
    dtype: jnp.dtype
    capacity: Capacity
    work_bytes: int
    max_model_len: int


def plan_engine(
    config: LlamaConfig, dtype: str, options: EngineOptions, *, target: GpuTarget, fraction: float
) -> PlannedEngine:
    """Plan an engine's memory as it would on the GPU.

    Args:
        config: the model.
        dtype: of weights and KV, or "auto".
        options: of the engine.
        target: the GPU.
        fraction: share of its memory that JAX may allocate.

    Raises:
        ValueError: it does not fit; see `plan_memory`.
    """
    device: Any = AbsentGpu(target, fraction)
    chosen = jnp.dtype(default_dtype(device) if dtype == "auto" else dtype)
    capacity = plan_memory(config, chosen, options, device=device)
    work = work_of(config, chosen, options, device=device)
    return PlannedEngine(
        config=config,
        dtype=chosen,
        capacity=capacity,
        work_bytes=work.nbytes(requests=capacity.slots, prompt_tokens=capacity.max_prefill_tokens),
        max_model_len=longest_context(config, options, capacity),
    )


def compile_engine(engine: PlannedEngine, *, target: GpuTarget) -> Compiler:
    """Begin to compile every program that an engine can need.

    Raises:
        RuntimeError: the CUDA plugin is not there.
    """
    runner, compiler = compiling_runner(engine, target=target)
    warm_up(runner)
    return compiler


def compiling_runner(engine: PlannedEngine, *, target: GpuTarget) -> tuple[ModelRunner, Compiler]:
    """Return a model's runner that compiles for a GPU what it is asked to run, and what compiles.

    Raises:
        RuntimeError: the CUDA plugin is not there.
    """
    config, capacity = engine.config, engine.capacity
    attention = device_attention_for(cast(jax.Device, AbsentGpu(target, 1.0)), config.head_dim)
    compiler = Compiler(target, page_size=capacity.page_size)
    runner = _AbstractRunner(
        config,
        abstract_weights(config, engine.dtype),
        programs=compiler.instead_of(build_programs(config, attention.append_and_attend, capacity.page_size)),
        device=jax.devices()[0],
        buckets=make_buckets(capacity, attention, max_model_len=engine.max_model_len),
    )
    return runner, compiler


class Batch(NamedTuple):
    """What a program is called with: for people, and how many tokens of KV it has to read."""

    label: str
    kv_tokens: int


def _batch(name: str, leaves: Sequence[Any], static: Mapping[str, Any], page_size: int) -> Batch:
    packed = [leaf.shape for leaf in leaves if leaf.dtype == jnp.int32 and len(leaf.shape) == 2]
    if name == "sample":
        mode = static["mode"]
        kind = [key for key in ("sampled", "filters", "penalties", "logprobs", "edits") if getattr(mode, key)]
        return Batch(f"{packed[0][0]} rows, {' '.join(kind) or 'greedy'}", 0)
    if name == "spread":
        return Batch(f"{packed[0][0]} rows", 0)
    if name in ("gather", "scatter"):
        return Batch(f"{next(leaf.shape[0] for leaf in leaves if len(leaf.shape) == 1)} pages", 0)
    if name not in ("decode_step", "embed", "attend", "layers"):
        tokens = [leaf.shape[0] for leaf in leaves if len(leaf.shape) == 2 and leaf.dtype == jnp.float32]
        return Batch(" + ".join(f"{count} rows" for count in tokens), 0)
    rows, width = packed[-1][0], packed[-1][1] - ROW_COLUMNS
    label, tokens = f"{rows} rows", rows * width
    if len(packed) > 1:
        tiles = packed[0][0]
        alone = static.get("one_request", True)
        label = f"{tiles * page_size} prompt tokens{'' if alone else ' of several'}, {label}"
        tokens += width * (1 if alone else tiles)
    return Batch(f"{label}, {width * page_size} cached", tokens * page_size * (name != "embed"))


def _compile(name: str, batch: Batch, lowered: Any) -> CompiledProgram:
    compiled = lowered.compile()
    memory, program = compiled.memory_analysis(), read_program(compiled.as_text())
    traffic = traffic_of(program)
    caches = {index: p for index, p in program.parameters.items() if is_cache(p.name)}
    # Of the embedding single rows are looked up; as a head all of it is needed.
    weights = sum(
        p.nbytes
        for p in program.parameters.values()
        if is_weight(p.name) and (name == "sample" or "embed" not in p.name)
    )
    kv = sum(batch.kv_tokens * p.nbytes / (p.shapes[0].dims[0] * p.shapes[0].dims[3]) for p in caches.values())
    return CompiledProgram(
        name=name,
        shape=batch.label,
        temp_bytes=memory.temp_size_in_bytes,
        result_bytes=max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        kernels=traffic.kernels,
        bytes_read=round(traffic.read),
        bytes_written=round(traffic.written),
        fewest_bytes_read=round(weights + kv),
        copies=[asdict(copy) for copy in traffic.copies],
        updated_in_place=name == "gather" or set(caches) <= program.updated_in_place,
    )
