"""Host tier: KV pages in host memory and decode attention over them."""

from .attention import decode_attention, native_attention_available
from .native_library import machine_instructions

__all__ = ["decode_attention", "machine_instructions", "native_attention_available"]
