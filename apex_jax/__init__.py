"""Hybrid LLaMA inference in JAX: KV cache in device and host memory, attention on both."""

from .engine import EngineStats
from .llm import LLM
from .models import LlamaConfig
from .options import EngineOptions
from .outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from .sampling_params import SamplingParams

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
]
