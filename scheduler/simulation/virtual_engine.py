"""An engine in virtual time: how host rows take part beside what `virtual_scheduler` schedules, and how time passes.

Iterations between two events are taken in one step, at the context lengths of their middle. Host rows of staggered
cohorts advance by the fraction of a token that an iteration is.
What an iteration takes is for others to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..capacity import Capacity
from ..cost_model.prediction import Load
from ..policy import Decision
from ..scheduler_state import Situation
from ..strategies import DEVICE_ONLY, named
from .request_pool import SimRequest
from .virtual_scheduler import VirtualScheduler

LONGEST_STEP = 64
"""Iterations taken in one step at most: contexts grow by no more before the policy is asked again."""


class Turn(NamedTuple):
    """How host rows take part in an iteration.

    Attributes:
        strategy: what prices it.
        lanes: rows of each cohort under way.
        pace: tokens that each host request makes on average.
    """

    strategy: str
    lanes: tuple[int, ...] = ()
    pace: float = 0.0


class Step(NamedTuple):
    """Iterations that are alike.

    Attributes:
        turn: how host rows take part.
        load: the device's side of the middle one.
        row_tokens: mean context of host rows in it.
        iterations: how many.
    """

    turn: Turn
    load: Load
    row_tokens: float
    iterations: int


def host_turn(strategy: str, lanes: Sequence[int], rows: int, num_layers: int, *, device: bool) -> Turn:
    """Return how `rows` host requests advance under a decision, beside device rows or without."""
    if not rows:
        return Turn(DEVICE_ONLY.name)
    chosen = named(strategy)
    if not device:
        chosen, lanes = chosen.without_device(lanes, rows) if lanes else DEVICE_ONLY.without_device(lanes, rows)
    if not lanes:
        return Turn(DEVICE_ONLY.name)
    under_way = chosen.under_way(lanes, rows, num_layers)
    return Turn(chosen.name, under_way, chosen.tokens(under_way, num_layers) / rows)


class VirtualEngine:
    """An engine's requests in virtual time.

    Args:
        capacity, prefill_alone: see `VirtualScheduler`.
        num_layers: L.

    Attributes:
        now: seconds since the start.
        scheduler: the requests that have arrived, and the memory.
    """

    def __init__(self, capacity: Capacity, num_layers: int, *, prefill_alone: bool = False) -> None:
        self.now = 0.0
        self.scheduler = VirtualScheduler(capacity, prefill_alone=prefill_alone)
        self._layers = num_layers
        self._last_pace = 1.0
        self._undecided = 0

    def situation(self) -> Situation:
        """Return what a policy is told."""
        scheduler = self.scheduler
        device, host, page_size = scheduler.device, scheduler.host, scheduler.capacity.page_size
        between = sum([request.output - request.done for request in (*scheduler.landing, *scheduler.prefilling)])
        return Situation(
            num_layers=self._layers,
            device_rows=device.rows + len(scheduler.landing),
            device_kv_tokens=int(device.kv_tokens),
            host_rows=host.rows,
            host_kv_tokens=int(host.kv_tokens),
            prefill_tokens=scheduler.likely_prefill,
            prefill_context=scheduler.prefilling[0].computed if scheduler.prefilling else 0,
            waiting=len(scheduler.waiting),
            waiting_tokens=scheduler.waiting_tokens,
            waiting_first=scheduler.capacity.at_once(scheduler.waiting[0].length) if scheduler.waiting else 0,
            waiting_output=scheduler.waiting_output,
            remaining_tokens=int(device.remaining + host.remaining) + between,
            host_remaining_tokens=int(host.remaining),
            free_device_tokens=scheduler.free * page_size,
            free_host_tokens=scheduler.host_free * page_size,
            oldest_host_wait=int(1 / self._last_pace) if self._last_pace and host.rows else 0,
            undecided=self._undecided,
            roster=scheduler.roster,
        )

    def begin(self, decision: Decision) -> Step:
        """Schedule iterations under a decision: as many as there are until somebody comes, goes or needs a page."""
        scheduler = self.scheduler
        scheduler.schedule(decision)
        decoding, host = scheduler.decoding, scheduler.host
        turn = host_turn(decision.strategy, decision.lanes, host.rows, self._layers, device=not scheduler.is_idle)
        count = self._count(decoding, turn.pace)
        middle = (count - 1) / 2
        load = Load(
            device_rows=decoding,
            device_kv_tokens=scheduler.device.kv_tokens + scheduler.device.growing * middle if decoding else 0,
            prefill_tokens=scheduler.prefill_tokens,
            prefill_pairs=scheduler.prefill_pairs,
            prompt_samples=len(scheduler.completed),
        )
        host_tokens = host.kv_tokens + host.growing * turn.pace * middle
        return Step(turn, load, host_tokens / host.rows if turn.lanes else 0.0, count)

    def end(self, step: Step, seconds: float, count: int) -> list[SimRequest]:
        """Let the first `count` iterations of a step pass, each of which takes so long; return who has ended."""
        self.now += seconds * count
        self._last_pace, self._undecided = step.turn.pace, count - 1
        return self.scheduler.advance(decoding=step.load.device_rows, host_tokens=step.turn.pace, steps=count)

    def _count(self, decoding: int, pace: float) -> int:
        scheduler = self.scheduler
        if not scheduler.repeats:
            return 1
        count = LONGEST_STEP
        if decoding:
            count = min(count, int(scheduler.device.next_end - scheduler.device.clock))
            count = min(count, scheduler.device.steps_within(scheduler.free, count))
            if scheduler.awaits_pages:
                count = scheduler.device.steps_to_return(count)
        if pace:
            host = scheduler.host
            count = min(count, math.ceil((host.next_end - host.clock) / pace - 1e-6))
            count = min(count, host.steps_within(scheduler.host_free, count, pace))
            if scheduler.awaits_pages:
                count = host.steps_to_return(count, pace)
        return max(1, count)
