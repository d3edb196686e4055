"""The rows of the overlap benchmark: medians over rounds and their spread, for people and for programs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import __version__
from ..host_offload import native_library
from ..machine.processor import processor_name, usable_cores
from ..machine.versions import installed_versions
from .overlap import OverlapBenchmark, Trial


def machine() -> dict[str, Any]:
    """Return what the real half of the benchmark ran on."""
    return {
        "host": processor_name(),
        "cores": usable_cores(),
        "instructions": native_library.machine_instructions() if native_library.load() is not None else "plain JAX",
        "versions": {"apex_jax": __version__} | installed_versions(("jax", "jaxlib", "numpy")),
    }


def setting(benchmark: OverlapBenchmark) -> dict[str, Any]:
    """Return what was emulated, and with how much memory: the beginning of every row."""
    return {
        "kind": "emulated",
        "device": benchmark.device.name,
        "shape": benchmark.model.name,
        "device_kv_tokens": benchmark.capacity.longest,
        "host_kv_gb": benchmark.host_kv_bytes / 1e9,
        "context": benchmark.context,
        "page_size": benchmark.page_size,
        "dtype": benchmark.dtype,
    }


def rows(benchmark: OverlapBenchmark, turns: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return a row for each strategy."""
    return [_row(benchmark, [turn for turn in turns if turn.strategy == name]) for name in benchmark.strategies]


def _row(benchmark: OverlapBenchmark, turns: Sequence[Trial]) -> dict[str, Any]:
    intervals, predictions = [turn.interval for turn in turns], [turn.prediction for turn in turns]
    return {
        **setting(benchmark),
        "strategy": turns[0].strategy,
        "rounds": len(turns),
        "seconds": benchmark.seconds,
        **_medians("tokens_per_s", (interval.tokens_per_s for interval in intervals)),
        **_medians("predicted_tokens_per_s", (prediction.tokens_per_s for prediction in predictions)),
        **_medians("achieved_over_predicted", (turn.achieved for turn in turns)),
        "device_busy": statistics.median(interval.device_busy for interval in intervals),
        "host_busy": statistics.median(interval.host_busy for interval in intervals),
        **_token_times("device", [gap for interval in intervals for gap in interval.device_gaps_ns]),
        **_token_times("host", [gap for interval in intervals for gap in interval.host_gaps_ns]),
        "iteration_ms": 1e3 * statistics.median(interval.iteration_s for interval in intervals),
        "predicted_iteration_ms": 1e3 * statistics.median(prediction.iteration_s for prediction in predictions),
        "device_requests": statistics.median(interval.device_rows for interval in intervals),
        "host_requests": statistics.median(turn.cohorts.riding for turn in turns),
        "extrapolated": any(prediction.extrapolated for prediction in predictions),
        "turns": [_one(turn) for turn in turns],
        "device_context": statistics.median(interval.device_context for interval in intervals),
        "others_busy": _worst(interval.others_busy for interval in intervals),
        "host_context": statistics.median(interval.host_context for interval in intervals),
        **machine(),
    }


def _one(turn: Trial) -> dict[str, Any]:
    return {
        "tokens_per_s": turn.interval.tokens_per_s,
        "predicted_tokens_per_s": turn.prediction.tokens_per_s,
        "host_requests": turn.cohorts.riding,
        "lanes": turn.cohorts.lanes,
        "host_job_ms": 1e3 * turn.interval.job_seconds,
        "others_busy": turn.interval.others_busy,
    }


def _worst(shares: Iterable[float | None]) -> float | None:
    return max((share for share in shares if share is not None), default=None)


def _medians(name: str, values: Iterable[float]) -> dict[str, Any]:
    found = sorted(values)
    return {name: statistics.median(found), f"{name}_spread": [found[0], found[-1]]}


def _token_times(side: str, gaps_ns: Sequence[int]) -> dict[str, float | None]:
    late = f"tpot_{side}_p99_ms"
    if not gaps_ns:
        return {f"tpot_{side}_ms": None, late: None}
    return {f"tpot_{side}_ms": float(np.median(gaps_ns)) / 1e6, late: float(np.percentile(gaps_ns, 99)) / 1e6}


def print_setting(first: Mapping[str, Any], write: Callable[[str], object]) -> None:
    """Write what rows have in common."""
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    write(f"emulated {first['device']} with {first['shape']}, KV of {first['device_kv_tokens']:,} tokens on the device")
    write(f"real host: {first['host']}, {first['cores']} cores, {first['instructions']}; {versions}")
    write(
        f"contexts of about {first['context']} tokens, {first['host_kv_gb']:g} GB of {first['dtype']} KV on the host, "
        f"pages of {first['page_size']}"
    )


def print_rows(table: Sequence[dict[str, Any]], write: Callable[[str], object]) -> None:
    """Write rows for people."""
    first = table[0]
    print_setting(first, write)
    write(
        f"prompts are skipped; medians of {first['rounds']} turns of {first['seconds']:g} s, in alternation; "
        "[least, most] beside them"
    )
    write("")
    write(
        f"{'emulated':<22}{'tokens/s':>9}{'':>16}{'predicted':>10}{'achieved':>10}{'':>14}{'busy':>14}{'requests':>12}"
    )
    for row in table:
        low, high = row["tokens_per_s_spread"]
        least, most = row["achieved_over_predicted_spread"]
        write(
            f"{row['strategy']:<22}{row['tokens_per_s']:9.0f}{f'[{low:.0f}, {high:.0f}]':>16}"
            f"{row['predicted_tokens_per_s']:10.0f}{'*' if row['extrapolated'] else ' '}"
            f"{row['achieved_over_predicted']:9.3f}"
            f"{f'[{least:.3f}, {most:.3f}]':>16}{row['device_busy']:6.0%}{row['host_busy']:6.0%}"
            f"{row['device_requests']:7.1f}+{row['host_requests']:.0f}"
        )
    if any(row["extrapolated"] for row in table):
        write("* extrapolated: more rows or tokens than the device's profile or the measured host covers")
    write("")
    write(f"{'ms per token':<22}{'device: median':>15}{'99 %':>8}{'host: median':>15}{'99 %':>8}{'iteration':>11}")
    for row in table:
        times = [row[f"tpot_{side}_{part}ms"] for side in ("device", "host") for part in ("", "p99_")]
        shown = ["-" if time is None else f"{time:.1f}" for time in times]
        write(f"{row['strategy']:<22}{shown[0]:>15}{shown[1]:>8}{shown[2]:>15}{shown[3]:>8}{row['iteration_ms']:11.2f}")
