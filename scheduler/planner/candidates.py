"""Candidate plans: for each strategy the cohort sizes that are worth trying, valued by what they make a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from ..cost_model.component_times import Costs
from ..cost_model.prediction import Load, Prediction, Timing
from ..strategies import DEVICE_ONLY, Strategy, named
from ..strategies.steady import DeviceSide


class Candidate(NamedTuple):
    """A strategy with its cohorts, and what it is worth.

    Attributes:
        strategy, lanes: see `Decision`.
        under_way: rows of each cohort that is under way at once, of which `lanes` are the most.
        rate: what it is worth a second: its tokens, of which a host request's count less the closer the end, and the
            tokens that the device would make in the time that prompts take.
        tokens_per_s: output tokens a second.
        iteration_s, device_busy_s, host_busy_s: of an iteration, in the mean where prompts ride in some.
        device_token_s, host_token_s: time per token of a request on either side, 0 where there is none; infinite for
            host requests that get none.
        sides: each kind of iterations, and whether host rows ride in it; the most frequent of these comes first.
        main: times of the first kind, as if they rode.
        row_tokens: mean context of host rows.
        way_beyond: what of the way to the host the profile does not cover, in words.
    """

    strategy: str
    lanes: tuple[int, ...]
    under_way: tuple[int, ...]
    rate: float
    tokens_per_s: float
    iteration_s: float
    device_busy_s: float
    host_busy_s: float
    device_token_s: float
    host_token_s: float
    sides: tuple[tuple[DeviceSide, bool], ...]
    main: Timing
    row_tokens: float
    way_beyond: tuple[str, ...]

    @property
    def riding(self) -> int:
        """Host rows that are under way at once."""
        return sum(self.under_way)

    @property
    def prediction(self) -> Prediction:
        """What an iteration takes, one of the most frequent kind if prompts ride in some."""
        return self.sides[0][0].steady(self.strategy, self.under_way, self.row_tokens)

    @property
    def beyond(self) -> tuple[str, ...]:
        """What of this the profile does not cover, in words."""
        found = list(self.way_beyond)
        for side, rides in self.sides:
            strategy, lanes = (self.strategy, self.under_way) if rides else (DEVICE_ONLY.name, ())
            found[:0] = side.beyond(strategy, lanes, self.row_tokens)
        return tuple(dict.fromkeys(found))

    @property
    def device_wait_s(self) -> float:
        """Seconds of an iteration in which the device waits for the host."""
        return max(0.0, self.iteration_s - self.device_busy_s)

    @property
    def token_s(self) -> float:
        """Time per token of the requests that wait longest for theirs."""
        return max(self.device_token_s, self.host_token_s)

    def keeps(self, limit_s: float) -> bool:
        """Whether no request waits longer than the limit for a token."""
        return self.token_s <= limit_s


def best_within(candidates: Iterable[Candidate], limit_s: float) -> Candidate:
    """Return the one that is worth most among those that keep a limit on time per token, or the least late of all if
    none does; the first of several as good."""

    def value(candidate: Candidate) -> tuple[bool, float]:
        keeps = candidate.keeps(limit_s)
        return keeps, candidate.rate if keeps else -candidate.token_s

    return max(candidates, key=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What candidates are valued on.

    Attributes:
        loads: the device's side of iterations, each with the fraction of iterations that are like it.
        host_rows: requests whose attention the host could compute, and `row_tokens` the mean of their contexts.
        device_rate: tokens a second of the device alone, which time for prompts is worth.
        horizon_s: time until the last request has ended; a host request's token that takes longer comes too late.
        moving_s: seconds of the host for moving a request there and back, for each of its tokens.
        limit_s: time per token that no request should exceed. With a limit host rows ride in every iteration, whether
            that pays or not.
        resting: whether the host requests exist, so that those that do not ride wait for a token; otherwise only those
            that ride come to exist.
        beyond: what of a request's way to the host the profile does not cover, in words.
    """

    loads: tuple[tuple[float, Load], ...]
    host_rows: int
    row_tokens: float
    device_rate: float = 0.0
    horizon_s: float = math.inf
    moving_s: float = 0.0
    limit_s: float = math.inf
    resting: bool = False
    beyond: tuple[str, ...] = ()


class Valuation:
    """Finds the best cohorts of each strategy under an outlook.

    Args:
        costs: times of the parts.
        outlook: what candidates are valued on.
    """

    def __init__(self, costs: Costs, outlook: Outlook) -> None:
        self.outlook = outlook
        self._costs = costs
        self._layers = costs.num_layers
        self._sides = [(weight, DeviceSide(costs, load)) for weight, load in outlook.loads]
        self._prompt_value = outlook.device_rate * sum(
            weight * _prompt_seconds(costs, side) for weight, side in self._sides if side.load.prefill_tokens
        )

    def device_only(self) -> Candidate:
        """Return the device alone; host requests rest."""
        return self._value(DEVICE_ONLY, (), ())

    def best(self, name: str) -> Candidate:
        """Return the best cohorts of a strategy; those that keep the limit go before those that do not."""
        strategy, rows = named(name), self.outlook.host_rows
        counts = strategy.cohort_counts(self._layers)
        if not (rows and any(counts)):
            return self.device_only()
        prompts = any(side.load.prefill_tokens for _, side in self._sides)
        shares = strategy.shares(prompts=prompts)
        found = []
        for cohorts in counts:
            value = partial(self._spread, strategy, cohorts=cohorts)
            # What is the best share of all rows is that of fewer too: it follows from how long the passes are.
            share = max(shares, key=lambda share: value(rows, share=share).rate) if shares[1:] else shares[0]
            found += self._counts(partial(value, share=share))
        return best_within(found, self.outlook.limit_s)

    def _spread(self, strategy: Strategy, rows: int, *, cohorts: int, share: float) -> Candidate:
        return self._value(strategy, strategy.spread(rows, cohorts, share), strategy.lanes(rows, cohorts, share))

    def _counts(self, value: Callable[[int], Candidate]) -> list[Candidate]:
        """Value all rows, and as many as keep the host in pace with the device, or the limit."""
        everybody = value(self.outlook.host_rows)
        found = self._fewer(everybody, value, self._in_pace)
        if len(found) > 1 and (some_more := math.ceil(1.25 * found[-1].riding)) < self.outlook.host_rows:
            # A host that is a little late can be worth it, since more rows share the passes.
            found.append(value(some_more))
        return found + self._fewer(everybody, value, self._in_limit)[1:]

    def _fewer(
        self,
        everybody: Candidate,
        value: Callable[[int], Candidate],
        wanted: Callable[[Sequence[Candidate]], int],
    ) -> list[Candidate]:
        """Value all rows, and then up to three times as many as are `wanted` in view of those valued before."""
        found = [everybody]
        for _ in range(3):
            fewer = wanted(found)
            if not 0 < fewer < found[-1].riding:
                break
            found.append(value(fewer))
        return found

    def _in_limit(self, tried: Sequence[Candidate]) -> int:
        """Return how many rows would keep the limit: on a straight line through what was tried, or in proportion."""
        last = tried[-1]
        excess = last.token_s - self.outlook.limit_s
        if not 0 < excess < math.inf:
            return last.riding
        if len(tried) > 1 and tried[-2].riding > last.riding:
            slope = (tried[-2].token_s - last.token_s) / (tried[-2].riding - last.riding)
        else:
            slope = last.token_s / last.riding
        return int(last.riding - excess / slope) if slope > 0 else last.riding

    def _in_pace(self, tried: Sequence[Candidate]) -> int:
        """Return how many rows would leave nobody waiting for the host, on a straight line through what was tried."""
        last = tried[-1]
        excess = _excess(last)
        if excess <= 0.002 * last.main.iteration_s:
            return last.riding
        if len(tried) > 1 and tried[-2].riding > last.riding:
            # Passes become shorter with fewer rows too.
            slope = (_excess(tried[-2]) - excess) / (tried[-2].riding - last.riding)
        else:
            slope = self._host_s_per_row(last)
        return int(last.riding - excess / slope) if slope > 0 else last.riding

    def _host_s_per_row(self, candidate: Candidate) -> float:
        """Return what a row takes of the host's time in an iteration, beside what jobs take whatever their rows."""
        rows, cohorts, busy = candidate.riding, len(candidate.under_way), candidate.main.host_busy_s
        if rows <= cohorts:
            return busy / rows
        tokens, size = self.outlook.row_tokens, rows / cohorts
        least = self._costs.host_attention(1, tokens) / self._costs.host_attention(size, size * tokens)
        return busy * (1 - least) / (rows - cohorts)

    def _pays(self, side: DeviceSide, riding: Timing) -> bool:
        """Whether host rows that go through in an iteration make up for the time by which they lengthen it."""
        longer = riding.iteration_s - side.alone.iteration_s
        return riding.host_tokens > self.outlook.device_rate * longer

    def _rides(self, strategy: Strategy, side: DeviceSide, riding: Timing) -> bool:
        """Whether host rows ride in iterations of this kind."""
        if not strategy.through or len(self._sides) == 1 or math.isfinite(self.outlook.limit_s):
            return True
        return self._pays(side, riding)

    def _value(self, strategy: Strategy, lanes: tuple[int, ...], decided: tuple[int, ...]) -> Candidate:
        outlook, name = self.outlook, strategy.name
        seconds = device_tokens = host_tokens = device_busy = host_busy = 0.0
        main, most, sides = None, (False, False, 0.0), []
        for weight, side in self._sides:
            timing = riding = side.timing(name, lanes, outlook.row_tokens)
            rides = self._rides(strategy, side, riding)
            if not rides:
                timing = side.alone
            seconds += weight * timing.iteration_s
            device_tokens += weight * timing.device_tokens
            host_tokens += weight * timing.host_tokens
            device_busy += weight * timing.device_busy_s
            host_busy += weight * timing.host_busy_s
            # Where riding pays in no kind of iteration, fewer rows may pay beside prompts.
            likely = (rides, not rides and side.load.prefill_tokens > 0, weight)
            sides.insert(0 if likely > most else len(sides), (side, rides))
            if likely > most:
                main, most = riding, likely
        assert main is not None
        rows = sum(lanes)
        turn = rows / host_tokens if host_tokens else 0.0
        rounds = max(1.0, outlook.host_rows / rows) if rows else 1.0
        in_time = max(0.0, 1.0 - seconds * turn * rounds / outlook.horizon_s)
        seconds = max(seconds, host_busy + outlook.moving_s * host_tokens)
        value = device_tokens + host_tokens * in_time + self._prompt_value
        host_token_s = seconds * turn * (rounds if outlook.resting else 1.0)
        if not host_tokens and (rows or (outlook.resting and outlook.host_rows)):
            host_token_s = math.inf
        return Candidate(
            strategy=name,
            lanes=decided,
            under_way=lanes,
            rate=value / seconds if seconds else 0.0,
            tokens_per_s=(device_tokens + host_tokens) / seconds if seconds else 0.0,
            iteration_s=seconds,
            device_busy_s=device_busy,
            host_busy_s=host_busy,
            device_token_s=seconds if device_tokens else 0.0,
            host_token_s=host_token_s,
            sides=tuple(sides),
            main=main,
            row_tokens=outlook.row_tokens,
            way_beyond=outlook.beyond if rows else (),
        )


def _excess(candidate: Candidate) -> float:
    """Return the seconds of an iteration by which the host takes longer than it has."""
    return named(candidate.strategy).excess(candidate.main)


def mixed(chances: Sequence[tuple[float, Load]]) -> tuple[tuple[float, Load], ...]:
    """Return the loads that occur, their fractions adding up to 1."""
    total = sum(chance for chance, _ in chances)
    return tuple((chance / total, load) for chance, load in chances if chance > 0)


def _prompt_seconds(costs: Costs, side: DeviceSide) -> float:
    """Return by how much longer the device alone takes because of the prompts in an iteration."""
    decode = replace(side.load, prefill_tokens=0, prefill_pairs=0)
    without = DeviceSide(costs, decode).alone.iteration_s if decode.device_rows else 0.0
    return max(0.0, side.alone.iteration_s - without)
