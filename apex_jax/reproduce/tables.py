"""Claims beside the gains that they speak of, for people and as CSV files, and those of simulations."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..files.whole_file import whole_file
from .claims import CLAIMS, Comparison, compare
from .gains import OVER, Gain
from .runs import Run


def comparisons(found: Sequence[Gain]) -> list[Comparison]:
    """Return every claim beside the gains that it speaks of; claims without any in the nominal set-up are left out."""
    result = []
    for claim in CLAIMS:
        gains = [
            gain
            for gain in found
            if gain.over == claim.over and claim.machine in ("", gain.machine) and gain.workload in claim.groups
        ]
        if any(gain.is_nominal for gain in gains):
            result.append(compare(claim, gains))
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
    yield (
        f"{'claim':<72} {'paper':>9} {'nominal':>13} {'paper ratio':>13} {'all set-ups':>13} {'in range':>9}  verdict"
    )
    for comparison in found:
        claim = comparison.claim
        paper = f"to {claim.high:g}" if claim.low is None else f"{claim.low:g}..{claim.high:g}"
        bands = " ".join(
            f"{'-' if band is None else f'{round(band[0])}..{round(band[1])}':>13}"
            for band in (comparison.nominal, comparison.at_papers_ratio, comparison.band)
        )
        counted = f"{len(comparison.inside)}/{len(comparison.gains)}"
        yield f"{claim.text[:72]:<72} {paper:>9} {bands} {counted:>9}  {comparison.verdict}"
    for claim in CLAIMS:
        if claim not in [comparison.claim for comparison in found]:
            yield f"not simulated in the nominal set-up: {claim.text}"


def _claim_rows(found: Sequence[Comparison]) -> Iterator[Mapping[str, object]]:
    for comparison in found:
        claim = comparison.claim
        papers = ("", "") if comparison.at_papers_ratio is None else [round(x, 1) for x in comparison.at_papers_ratio]
        yield {
            "claim": claim.text,
            "paper_low_percent": "" if claim.low is None else claim.low,
            "paper_high_percent": claim.high,
            "simulated_nominal_low": round(comparison.nominal[0], 1),
            "simulated_nominal_high": round(comparison.nominal[1], 1),
            "simulated_paper_ratio_low": papers[0],
            "simulated_paper_ratio_high": papers[1],
            "simulated_band_low": round(comparison.band[0], 1),
            "simulated_band_high": round(comparison.band[1], 1),
            "range_low_percent": round(claim.range[0], 2),
            "range_high_percent": round(claim.range[1], 2),
            "nominal_in_range": sum(gain.is_nominal for gain in comparison.inside),
            "nominal_simulated": sum(gain.is_nominal for gain in comparison.gains),
            "paper_ratio_in_range": sum(gain.is_at_papers_ratio for gain in comparison.inside),
            "paper_ratio_simulated": sum(gain.is_at_papers_ratio for gain in comparison.gains),
            "all_in_range": len(comparison.inside),
            "all_simulated": len(comparison.gains),
            "in_range": "; ".join(map(str, comparison.inside)),
            "verdict": comparison.verdict,
        }


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same columns as CSV."""
    with whole_file(file) as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
