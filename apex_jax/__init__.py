"""Hybrid LLaMA inference in JAX: KV cache in device and host memory, attention on both."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.stats import EngineStats as EngineStats
    from .llm import LLM as LLM
    from .models import LlamaConfig as LlamaConfig
    from .options import EngineOptions as EngineOptions
    from .outputs import CompletionOutput as CompletionOutput
    from .outputs import Logprob as Logprob
    from .outputs import RequestMetrics as RequestMetrics
    from .outputs import RequestOutput as RequestOutput
    from .sampling_params import SamplingParams as SamplingParams
    from .structured_outputs import StructuredOutputsParams as StructuredOutputsParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineOptions",
    "EngineStats",
    "LlamaConfig",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
]

_HOMES = {
    "LLM": ".llm",
    "CompletionOutput": ".outputs",
    "EngineOptions": ".options",
    "EngineStats": ".engine.stats",
    "LlamaConfig": ".models",
    "Logprob": ".outputs",
    "RequestMetrics": ".outputs",
    "RequestOutput": ".outputs",
    "SamplingParams": ".sampling_params",
    "StructuredOutputsParams": ".structured_outputs",
}


def __getattr__(name: str) -> Any:
    # On first use: the scheduler works without JAX, and `apex-jax --help` need not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
