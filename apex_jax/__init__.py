"""Hybrid LLaMA inference in JAX: KV cache in device and host memory, attention on both."""
