"""Gains and claims worked out from simulations, and CSV files of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .claims import CLAIMS, Comparison, compare
from .runs import Run
from .setups import NOMINAL

OVER = {
    "device_only": ("apex", "device_only"),
    "pipelining": ("apex", "pipelining"),
    "overlap": ("overlap", "pipelining"),
    "without_overlap": ("apex", "apex without overlap"),
    "slower_kernel": ("apex", "apex, host kernel at two thirds"),
    "no_cost_model": ("apex", "always overlap"),
}
"""Gains by name: the variant, and what it is compared with."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The gain in tokens/s of one variant over another.

    Attributes:
        machine, setup, workload: of both.
        over: a key of `OVER`.
        percent: 0 where they are equal.
    """

    machine: str
    setup: str
    workload: str
    over: str
    percent: float


def gains(runs: Sequence[Run]) -> list[Gain]:
    """Return all gains whose two variants were simulated."""
    rates: dict[tuple[str, str, str], dict[str, float]] = {}
    for run in runs:
        rates.setdefault((run.machine, run.setup, run.workload), {})[run.variant] = run.result.tokens_per_s
    return [
        Gain(machine=machine, setup=setup, workload=workload, over=over, percent=100 * (found[this] / found[that] - 1))
        for (machine, setup, workload), found in rates.items()
        for over, (this, that) in OVER.items()
        if this in found and that in found
    ]


def comparisons(found: Sequence[Gain]) -> list[Comparison]:
    """Return every claim beside the gains that it speaks of; claims without any are left out."""
    result = []
    for claim in CLAIMS:
        everything = [
            gain
            for gain in found
            if gain.over == claim.over and claim.machine in ("", gain.machine) and gain.workload in claim.groups
        ]
        nominal = [gain.percent for gain in everything if gain.setup == NOMINAL]
        if nominal:
            result.append(compare(claim, nominal, [gain.percent for gain in everything]))
    return result


def write_runs(file: Path, runs: Sequence[Run]) -> None:
    """Write simulations as CSV."""
    write_rows(file, [run.row() for run in runs])


def write_gains(file: Path, found: Sequence[Gain]) -> None:
    """Write gains as CSV."""
    write_rows(
        file,
        [
            {
                "machine": gain.machine,
                "setup": gain.setup,
                "workload": gain.workload,
                "gain": " over ".join(OVER[gain.over]),
                "percent": round(gain.percent, 2),
            }
            for gain in found
        ],
    )


def write_claims(file: Path, found: Sequence[Comparison]) -> None:
    """Write claims beside what was simulated as CSV."""
    write_rows(file, list(_claim_rows(found)))


def claim_lines(found: Sequence[Comparison]) -> Iterator[str]:
    """Yield claims beside what was simulated as lines for people."""
    yield "gain in throughput, %; everything but the paper's column is simulated"
    yield f"{'claim':<72} {'paper':>9} {'nominal':>13} {'all set-ups':>13}  verdict"
    for comparison in found:
        claim = comparison.claim
        paper = f"to {claim.high:g}" if claim.low is None else f"{claim.low:g}..{claim.high:g}"
        bands = (f"{low:.0f}..{high:.0f}" for low, high in (comparison.nominal, comparison.band))
        yield f"{claim.text[:72]:<72} {paper:>9} {next(bands):>13} {next(bands):>13}  {comparison.verdict}"


def _claim_rows(found: Sequence[Comparison]) -> Iterator[Mapping[str, object]]:
    for comparison in found:
        claim = comparison.claim
        yield {
            "claim": claim.text,
            "paper_low_percent": "" if claim.low is None else claim.low,
            "paper_high_percent": claim.high,
            "simulated_nominal_low": round(comparison.nominal[0], 1),
            "simulated_nominal_high": round(comparison.nominal[1], 1),
            "simulated_band_low": round(comparison.band[0], 1),
            "simulated_band_high": round(comparison.band[1], 1),
            "verdict": comparison.verdict,
        }


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same columns as CSV."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
