"""Host tier: KV pages in host memory and decode attention over them."""

from .attention import decode_attention, decode_attention_packed, native_attention_available
from .cache import HostKVCache, HostKVConfig, allocate, read_pages, write_pages
from .memory import available_memory
from .native_library import machine_instructions
from .worker import HostJob, HostWorker

__all__ = [
    "HostJob",
    "HostKVCache",
    "HostKVConfig",
    "HostWorker",
    "allocate",
    "available_memory",
    "decode_attention",
    "decode_attention_packed",
    "machine_instructions",
    "native_attention_available",
    "read_pages",
    "write_pages",
]
