"""Names of engine options as other programs and fingers have them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .options import EngineOptions

ELSEWHERE = {
    "gpu_memory_utilization": "memory_fraction",
    "mem_fraction_static": "memory_fraction",
    "block_size": "page_size",
    "swap_space": "host_kv_bytes, in bytes",
    "cpu_offload_gb": "host_kv_bytes, in bytes",
    "kv_cache_memory_bytes": "device_kv_bytes",
    "num_gpu_blocks_override": "device_kv_tokens, in tokens",
    "max_num_batched_token": "max_num_batched_tokens",
    "max_seq_len": "max_model_len",
    "context_length": "max_model_len",
    "n_ctx": "max_model_len",
    "max_batch_size": "max_num_seqs",
}
"""What other engines call an option, and what it is called here."""

ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "quantization": (None,),
    "trust_remote_code": (False,),
    "enforce_eager": (False,),
    "cpu_offload_gb": (0,),
    "swap_space": (0,),
    "enable_lora": (False,),
    "speculative_config": (None,),
    "disable_log_stats": (True, False),
}
"""Options of other engines, with the values that are what happens here anyway."""


def engine_options(options: Mapping[str, Any], *, caller: str, others: tuple[str, ...]) -> EngineOptions:
    """Return the options that a caller was given by name.

    Args:
        options: by name; those that ask for nothing are left out.
        caller: what the user called.
        others: names that it takes beside these.

    Raises:
        TypeError, ValueError: a name is unknown, and then it says which is near; or as in `EngineOptions`.
    """
    names = [field.name for field in fields(EngineOptions)]
    given = {}
    for name, value in options.items():
        if name in names:
            given[name] = value
        elif not any(value is each or value == each for each in ASKS_FOR_NOTHING.get(name, ())):
            raise TypeError(f"{caller} has no option {name!r} (it is {value!r}){_near(name, [*names, *others])}")
    return EngineOptions(**given)


def _near(name: str, names: list[str]) -> str:
    if name in ELSEWHERE:
        return f"; here that is {ELSEWHERE[name]}"
    if name in ASKS_FOR_NOTHING:
        allowed = " or ".join(map(repr, ASKS_FOR_NOTHING[name]))
        return f"; of what it means elsewhere only {allowed} is done here"
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(names))}"
