"""What the requests and the memory that exist let one expect: the outlooks that candidates are valued on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..admission import Tier, make_room
from ..capacity import Capacity
from ..cost_model.component_times import Costs
from ..cost_model.prediction import Load, prompt_pairs
from ..scheduler_state import Situation
from ..strategies.steady import DeviceSide
from .candidates import Outlook, mixed

FORGETTING = 1 / 128
"""Weight of the latest iteration in the mean of what prompts iterations carry. A short memory would send requests to
the host only while prompts come, and so make them come in bursts."""

RARE = 0.02
"""Fraction of iterations below which a kind of them does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What iterations carry of prompts.

    Attributes:
        chance: fraction of iterations with prompt tokens.
        tokens, context: prompt tokens in those, and tokens in front of them.
    """

    chance: float = 0.0
    tokens: float = 0.0
    context: float = 0.0

    def after(self, load: Load, situation: Situation, *, first: bool) -> Prompts:
        """Return the means with one more iteration; the first one alone sets them."""
        here = 1.0 if load.prefill_tokens else 0.0
        before = self.chance * (1 - FORGETTING) ** situation.undecided
        chance = here if first else before + FORGETTING * (here - before)
        if not load.prefill_tokens:
            return Prompts(chance=chance, tokens=self.tokens, context=self.context)
        weight = FORGETTING if self.tokens else 1.0
        return Prompts(
            chance=chance,
            tokens=self.tokens + weight * (situation.prefill_tokens - self.tokens),
            context=self.context + weight * (situation.prefill_context - self.context),
        )

    def beside(self, rows: int, kv_tokens: float) -> tuple[tuple[float, Load], ...]:
        """Return the iterations of so many device rows, with and without prompts."""
        chance = 0.0 if self.chance < RARE else 1.0 if self.chance > 1 - RARE else self.chance
        tokens = round(self.tokens)
        with_prompts = Load(
            device_rows=rows,
            device_kv_tokens=kv_tokens,
            prefill_tokens=tokens,
            prefill_pairs=prompt_pairs(tokens, round(self.context)),
        )
        return mixed(((chance, with_prompts), (1 - chance, Load(device_rows=rows, device_kv_tokens=kv_tokens))))


def next_load(situation: Situation, *, begins: bool) -> Load:
    """Return the very next iteration's load, with the prompts that the situation speaks of if they begin in it."""
    tokens = situation.prefill_tokens if begins else 0
    return Load(
        device_rows=situation.device_rows,
        device_kv_tokens=situation.device_kv_tokens,
        prefill_tokens=tokens,
        prefill_pairs=prompt_pairs(tokens, situation.prefill_context),
    )


def prompts_begin(situation: Situation, max_host_requests: int, page_size: int) -> bool:
    """Whether the very next iteration has prompts: one is under way, or the first that waits finds a place."""
    if not situation.prefill_tokens or not situation.waiting or situation.prefill_context:
        return situation.prefill_tokens > 0
    rows = situation.device_rows
    first = -(-situation.waiting_first // page_size)
    each = math.ceil(situation.device_kv_tokens / max(1, rows) / page_size)
    device = Tier(situation.free_device_tokens // page_size, rows, math.inf)
    host = Tier(situation.free_host_tokens // page_size, situation.host_rows, max_host_requests)
    admitted, _ = make_room([first], itertools.repeat(each, rows), int, 1, device, host)
    return admitted == 1


def outlooks(
    costs: Costs, situation: Situation, prompts: Prompts, capacity: Capacity, limit_s: float
) -> tuple[Outlook, Outlook]:
    """Return the outlook on the requests as they are, and on as many host requests as could come to exist.

    The second one is what it means to let requests go to the host: as many as do not fit on the device once all have
    grown to their ends, as far as host memory holds them, beside a device that is full.
    """
    running = situation.device_rows + situation.host_rows
    total = max(1, running + situation.waiting)
    tokens = situation.device_kv_tokens + situation.host_kv_tokens + situation.waiting_tokens
    context = max(1.0, tokens / total)
    remaining = situation.remaining_tokens / running if running else 0.0
    if situation.waiting_output:
        remaining = (situation.remaining_tokens + situation.waiting_output) / total
    memory = situation.device_kv_tokens + situation.free_device_tokens
    device_rows = max(1, min(total, capacity.max_num_seqs, int(memory / context)))
    overflow = total - min(capacity.max_num_seqs, int(memory / (context + remaining)))
    host_memory = int((situation.host_kv_tokens + situation.free_host_tokens) / context)
    host_rows = min(max(overflow, situation.host_rows), host_memory, capacity.max_host_seqs)
    full = prompts.beside(device_rows, device_rows * context)
    device_rate = _device_rate(costs, full)
    left = situation.remaining_tokens + situation.waiting * remaining
    ends = bool(left) and (situation.device_rows or situation.waiting)
    horizon = left / device_rate if ends and device_rate else math.inf
    now = Outlook(
        loads=prompts.beside(situation.device_rows, situation.device_kv_tokens),
        host_rows=situation.host_rows,
        row_tokens=situation.host_kv_tokens / situation.host_rows if situation.host_rows else context,
        device_rate=device_rate,
        horizon_s=horizon,
        limit_s=limit_s,
        resting=True,
    )
    then = Outlook(
        loads=full,
        host_rows=max(0, host_rows),
        row_tokens=context,
        device_rate=device_rate,
        horizon_s=horizon,
        moving_s=2 * costs.migration(context) / max(1.0, remaining),
        limit_s=limit_s,
        beyond=costs.moving_beyond(context),
    )
    return now, then


def _device_rate(costs: Costs, loads: Sequence[tuple[float, Load]]) -> float:
    load = loads[0][1]
    rows = Load(device_rows=load.device_rows, device_kv_tokens=load.device_kv_tokens)
    seconds = DeviceSide(costs, rows).alone.iteration_s
    return load.device_rows / seconds if seconds else 0.0
