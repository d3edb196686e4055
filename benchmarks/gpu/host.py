"""Decode attention on this machine's processor, beside the speed of reading its memory."""

from __future__ import annotations

import os
import sys

import jax
from report import open_report

from apex_jax.bench.host_attention import AttentionBenchmark, latency_us, run
from apex_jax.host_offload import native_attention_available

SHAPES = {"llama-3.1-8b": (32, 8, 128), "llama-2-7b": (32, 32, 128)}


def main() -> int:
    """Measure."""
    report, args = open_report()
    shapes = {"tiny": (4, 2, 16)} if args.tiny else SHAPES
    table = report.table(
        f"append excluded, {os.cpu_count()} cores",
        "model",
        "dtype",
        "case",
        "kernel",
        "GB/s",
        "stream GB/s",
        "fraction",
        "error",
    )
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        report.fact("latency_us", latency_us(repeats=20 if args.tiny else 2000))
        for model, shape in shapes.items():
            benchmark = AttentionBenchmark(
                implementations=("native",) if native_attention_available(shape[2]) else ("jax",),
                shapes=(shape,),
                cases=("64x256",) if args.tiny else ("64x256", "8x2048", "ragged"),
                dtypes=("bfloat16",) if args.tiny else ("bfloat16", "float16"),
                repeats=3 if args.tiny else 5,
                pool_bytes=(4 if args.tiny else 1024) << 20,
            )
            for row in run(benchmark):
                if row["dtype"] == "bfloat16" and row["case"] == "64x256":
                    report.fact(model, 1e9 * row["gb_per_s"])
                table.add(
                    model,
                    *(row[name] for name in ("dtype", "case", "implementation", "gb_per_s", "stream_gb_per_s")),
                    row["fraction_of_stream"],
                    row["max_error"],
                )
                if report.left < 3:
                    report.fail("host attention: the rest was left out, no time")
                    return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
