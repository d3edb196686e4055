"""The simulator beside published sweeps of a pipelined hybrid engine.

    python benchmarks/anchors.py --t4 pipelining_t4_sweep.csv --a10g pipelining_a10g_gain.csv

Columns of the first file: input_tokens, output_tokens, hybrid_requests_per_s, gpu_only_requests_per_s; of the second:
cpu_cores, input_tokens, output_tokens, relative_throughput. All numbers of this program are simulated from the rates in
the catalogue; no number is fitted to a row.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from statistics import mean

from apex_jax.reproduce.anchors import a10g_gain, t4_gpu_only, t4_hybrid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t4", type=Path, metavar="FILE", help="request rates on a T4")
    parser.add_argument("--a10g", type=Path, metavar="FILE", help="relative throughput on an A10G")
    parser.add_argument("--requests", type=int, default=1000, help="of each workload (default: 1000)")
    args = parser.parse_args()
    if args.t4 is not None:
        _t4(args.t4, args.requests)
    if args.a10g is not None:
        _a10g(args.a10g, args.requests)


def _t4(file: Path, requests: int) -> None:
    print("T4, Llama-2-7B, requests/s simulated beside published")
    print(
        f"{'input':>6} {'output':>6} | {'hybrid':>8} {'publ.':>8} {'error':>7} "
        f"| {'GPU-only':>8} {'publ.':>8} {'error':>7}"
    )
    errors: dict[str, list[float]] = {"hybrid": [], "GPU-only": []}
    for row in _rows(file):
        shape = {"prompt": int(row["input_tokens"]), "output": int(row["output_tokens"]), "requests": requests}
        cells = []
        for name, column, simulated in (
            ("hybrid", "hybrid_requests_per_s", t4_hybrid(**shape)),
            ("GPU-only", "gpu_only_requests_per_s", t4_gpu_only(**shape)),
        ):
            published = float(row[column])
            errors[name].append(simulated / published - 1)
            cells.append(f"{simulated:8.3f} {published:8.3f} {errors[name][-1]:+7.1%}")
        print(f"{shape['prompt']:>6} {shape['output']:>6} | {cells[0]} | {cells[1]}")
    for name, some in errors.items():
        print(f"{name}: mean error {mean(map(abs, some)):.1%}, worst {max(map(abs, some)):.1%}")


def _a10g(file: Path, requests: int) -> None:
    print("A10G, Llama-3.1-8B, throughput over GPU-only, simulated beside published")
    print(f"{'cores':>6} {'input':>6} {'output':>6} | {'simulated':>9} {'published':>9} {'error':>7}")
    for row in _rows(file):
        cores, prompt, output = (int(row[name]) for name in ("cpu_cores", "input_tokens", "output_tokens"))
        gain, published = (
            a10g_gain(cores=cores, prompt=prompt, output=output, requests=requests),
            float(row["relative_throughput"]),
        )
        print(f"{cores:>6} {prompt:>6} {output:>6} | {gain:9.3f} {published:9.3f} {gain / published - 1:+7.1%}")


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


if __name__ == "__main__":
    main()
