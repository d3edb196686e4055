"""The process that compiles: a request as JSON on standard input, an object of JSON a line on standard output.

JAX reads what to compile for from the environment when it is imported, so that this is a process of its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from ..execution.model_shape import shape_of
from ..models.loading.loader import open_model
from ..models.presets import PRESETS
from ..options import EngineOptions
from .compile_programs import compile_engine, plan_engine
from .gpu_target import GpuTarget


def _say(**message: Any) -> None:
    sys.stdout.write(f"{json.dumps(message)}\n")
    sys.stdout.flush()


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    request["target"]["capability"] = tuple(request["target"]["capability"])
    target = GpuTarget(**request["target"])
    try:
        kind = {"load_format": "dummy"} if request["model"] in PRESETS else {}
        config = open_model(request["model"], num_layers=request["num_layers"], **kind).config
        engine = plan_engine(
            config,
            request["dtype"],
            EngineOptions(**request["options"]),
            target=target,
            fraction=request["fraction"],
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        _say(refused=str(error))
        return
    capacity = engine.capacity
    _say(
        planned={
            "dtype": str(engine.dtype),
            "num_layers": config.num_hidden_layers,
            "weight_bytes": config.num_parameters * engine.dtype.itemsize,
            "kv_bytes_per_token": shape_of(config, engine.dtype).kv_bytes_per_token,
            "device_kv_tokens": capacity.device_kv_tokens,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": capacity.max_num_seqs,
            "max_host_seqs": capacity.max_host_seqs,
            "max_num_batched_tokens": capacity.max_prefill_tokens,
            "work_bytes": engine.work_bytes,
        }
    )
    try:
        compiler = compile_engine(engine, target=target)
    except RuntimeError as error:
        _say(refused=f"JAX cannot compile for {target.name}: {error}")
        return
    _say(programs=len(compiler))
    for program in compiler.programs():
        _say(program=asdict(program))


if __name__ == "__main__":
    main()
