"""Compiles every program that any plan can need, by running each on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from .batch import padding_rows, padding_samples, padding_tiles
from .logit_edits import many_entries
from .model_runner import SEGMENT, Lane, ModelRunner
from .programs import Riders
from .sampler import MODES, SamplingMode


def warm_up(runner: ModelRunner, modes: Sequence[SamplingMode] = MODES) -> None:
    """Compile the programs of a model for all its batch shapes; changes no request.

    Args:
        runner: holds the model.
        modes: of sampling.
    """
    buckets = runner.buckets
    if any(mode.penalties for mode in modes):
        runner.slots.mark_seen(buckets.slots, ())
    for count in buckets.decode_rows:
        for width in buckets.table_widths:
            runner.decode(padding_rows(count, width, buckets))
    for count in buckets.samples:
        for mode in modes:
            # More entries than are sent at once.
            edits = many_entries() if mode.edits else ()
            runner.sample(runner.no_ends(count), padding_samples(count, buckets), mode, edits)
    cohorts = [_cohort(runner, count) for count in buckets.host_rows]
    for lane in _lanes(runner):
        _pass_lane(runner, lane, cohorts)
    for count in buckets.moved_pages if cohorts else ():
        pages = np.full(count, buckets.capacity.device_pages, np.int32)
        runner.scatter(0, pages, runner.gather(0, pages))
    jax.block_until_ready(runner.slots.last_token)


def _lanes(runner: ModelRunner) -> Iterator[Lane]:
    """Yield device rows of every shape that goes from boundary to boundary."""
    buckets = runner.buckets
    mixed = [
        (tiles, count, one_request)
        for tiles in buckets.tiles
        for one_request in ((True, False) if tiles > 1 else (True,))
        for count in buckets.mixed_rows
    ]
    alone = [(None, count, True) for count in buckets.decode_rows] if buckets.capacity.max_host_seqs else []
    for tiles, count, one_request in (*mixed, *alone):
        for width in buckets.table_widths:
            packed = None if tiles is None else padding_tiles(tiles, width, buckets)
            yield runner.embed(packed, padding_rows(count, width, buckets), one_request=one_request)


def _cohort(runner: ModelRunner, count: int) -> Riders:
    riders = runner.board(padding_rows(count, 0, runner.buckets))._replace(attended=runner.no_attention(count))
    _pass_boundaries(runner, None, riders)
    _collect(runner, riders.x)
    return riders


def _pass_lane(runner: ModelRunner, lane: Lane, cohorts: Sequence[Riders]) -> None:
    start = Riders(lane.passed[0], lane.turn, None)
    passed, _ = runner.boundary(0, start, None)
    assert passed is not None
    lane = replace(lane, passed=passed)
    riders = start._replace(x=passed[0], attended=runner.attend(lane, 0))
    # One layer in the middle, the last one, and several, which prompts do not have.
    runs = [(1, 1), (runner.num_layers, 1), *([(1, SEGMENT)] if lane.tiles is None else [])]
    for boundary, count in runs:
        runner.segment(lane, boundary, min(boundary + count, runner.num_layers + 1))
    for cohort in (None, *cohorts):
        _pass_boundaries(runner, riders, cohort)
    _collect(runner, passed[0])


def _collect(runner: ModelRunner, x: jax.Array) -> None:
    """Compile the collection of rows of this shape into every number of samples."""
    for count in runner.buckets.samples:
        runner.programs.collect(runner.no_ends(count), x, np.full(x.shape[0], count, np.int32))


def _pass_boundaries(runner: ModelRunner, device: Riders | None, cohort: Riders | None) -> None:
    """Compile the boundary at both ends of the model and between two layers."""
    for boundary in dict.fromkeys((0, min(1, runner.num_layers), runner.num_layers)):
        ends = [
            riders and riders._replace(attended=riders.attended if boundary else None) for riders in (device, cohort)
        ]
        runner.boundary(boundary, *ends)
