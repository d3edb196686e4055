"""Candidate plans: for each strategy the cohort sizes that are worth trying, valued by what they make a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from .costs import Costs
from .plan import Strategy
from .prediction import Load, Prediction
from .steady import DeviceSide


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A strategy with its cohorts, and what it is worth.

    Attributes:
        strategy, lanes: see `Decision`.
        riding: host rows that are under way at once.
        rate: tokens a second; time that prompts take counts as the tokens that the device would make in it.
        device_token_s, host_token_s: time per token of a request on either side, 0 where there is none.
        prediction: of an iteration, the most frequent kind if prompts ride in some.
    """

    strategy: Strategy
    lanes: tuple[int, ...]
    riding: int
    rate: float
    device_token_s: float
    host_token_s: float
    prediction: Prediction

    def keeps(self, limit_s: float) -> bool:
        """Whether no request waits longer than the limit for a token."""
        return max(self.device_token_s, self.host_token_s) <= limit_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What candidates are valued on.

    Attributes:
        loads: the device's side of iterations, each with the fraction of iterations that are like it.
        host_rows: requests whose attention the host could compute, and `row_tokens` the mean of their contexts.
        device_rate: tokens a second of the device alone, which time for prompts is worth.
        horizon_s: time until the last request has ended; a host request's token that takes longer comes too late.
        moving_s: seconds of the host for moving a request there and back, for each of its tokens.
        limit_s: time per token that no request should exceed.
    """

    loads: tuple[tuple[float, Load], ...]
    host_rows: int
    row_tokens: float
    device_rate: float = 0.0
    horizon_s: float = math.inf
    moving_s: float = 0.0
    limit_s: float = math.inf


class Valuation:
    """Finds the best cohorts of each strategy under an outlook.

    Args:
        costs: times of the parts.
        outlook: what candidates are valued on.
    """

    def __init__(self, costs: Costs, outlook: Outlook) -> None:
        self.outlook = outlook
        self._layers = costs.num_layers
        self._sides = [(weight, DeviceSide(costs, load)) for weight, load in outlook.loads]
        self._prompt_value = outlook.device_rate * sum(
            weight * _prompt_seconds(costs, side) for weight, side in self._sides if side.load.prefill_tokens
        )

    def device_only(self) -> Candidate:
        """Return the device alone; host requests rest."""
        return self._value("device_only", ())

    def best(self, strategy: Strategy) -> Candidate:
        """Return the best cohorts of a strategy; those that keep the limit go before those that do not."""
        rows = self.outlook.host_rows
        if strategy == "device_only" or not rows:
            return self.device_only()
        if strategy == "layer_sync":
            return self._shrink(rows, lambda count: self._value(strategy, (count,)))
        if strategy == "asymmetric_pipelining":
            return self._shrink(rows, lambda count: self._value(strategy, even(count, 2)))
        found = self._shrink(rows, lambda count: self._spaced(count, 1))
        spacings = [2**power for power in range(1, self._layers.bit_length() + 1) if 2**power <= self._layers + 1]
        return self._better([found, *(self._spaced(found.riding, spacing) for spacing in spacings)])

    def _spaced(self, rows: int, spacing: int) -> Candidate:
        """Return cohorts of async_overlap that depart `spacing` iterations apart."""
        boundaries = self._layers + 1
        under_way = min(rows, boundaries // spacing)
        departures = -(-boundaries // spacing)
        return self._value(
            "async_overlap", even(rows, under_way), decided=(-(-rows // under_way),) * min(rows, departures)
        )

    def _shrink(self, rows: int, value: Callable[[int], Candidate]) -> Candidate:
        """Return the best count of rows, tried from all of them down to where the host keeps pace with the device."""
        best = latest = value(rows)
        for _ in range(3):
            fewer = math.floor(rows * self._fraction(latest))
            if not 0 < fewer < rows:
                break
            rows, latest = fewer, value(fewer)
            best = self._better([best, latest])
        return best

    def _fraction(self, candidate: Candidate) -> float:
        """Return by how much fewer rows would leave nobody waiting for the host, or keep the limit."""
        prediction, limit = candidate.prediction, self.outlook.limit_s
        late = max(candidate.device_token_s, candidate.host_token_s)
        within = 1.0 if late <= limit else limit / late
        waiting = prediction.device_wait_s
        if waiting <= 0.005 * prediction.iteration_s:
            return within
        if candidate.strategy == "layer_sync":
            window = prediction.device.device_attention + prediction.device.prefill_attention
            return min(within, window / (window + waiting))
        return min(within, prediction.device_busy_s / prediction.iteration_s)

    def _better(self, candidates: Iterable[Candidate]) -> Candidate:
        return max(candidates, key=lambda candidate: (candidate.keeps(self.outlook.limit_s), candidate.rate))

    def _value(self, strategy: Strategy, lanes: tuple[int, ...], decided: tuple[int, ...] | None = None) -> Candidate:
        outlook = self.outlook
        seconds = device_tokens = host_tokens = host_busy = 0.0
        main, most = None, 0.0
        for weight, side in self._sides:
            prediction = side.steady(strategy, lanes, outlook.row_tokens)
            seconds += weight * prediction.iteration_s
            device_tokens += weight * prediction.device_tokens
            host_tokens += weight * prediction.host_tokens
            host_busy += weight * prediction.host_busy_s
            if weight > most:
                main, most = prediction, weight
        assert main is not None
        riding = sum(lanes)
        host_token_s = 0.0
        if host_tokens:
            host_token_s = seconds * riding / host_tokens * max(1.0, outlook.host_rows / riding)
        in_time = max(0.0, 1.0 - host_token_s / outlook.horizon_s)
        seconds = max(seconds, host_busy + outlook.moving_s * host_tokens)
        value = device_tokens + host_tokens * in_time + self._prompt_value
        return Candidate(
            strategy=strategy,
            lanes=lanes if decided is None else decided,
            riding=riding,
            rate=value / seconds if seconds else 0.0,
            device_token_s=seconds if device_tokens else 0.0,
            host_token_s=host_token_s,
            prediction=main,
        )


def even(rows: int, count: int) -> tuple[int, ...]:
    """Spread rows evenly over at most `count` lanes, larger ones first."""
    least, more = divmod(rows, count)
    return tuple(size for size in (least + 1,) * more + (least,) * (count - more) if size)


def mixed(chances: Sequence[tuple[float, Load]]) -> tuple[tuple[float, Load], ...]:
    """Return the loads that occur, their fractions adding up to 1."""
    total = sum(chance for chance, _ in chances)
    return tuple((chance / total, load) for chance, load in chances if chance > 0)


def _prompt_seconds(costs: Costs, side: DeviceSide) -> float:
    """Return by how much longer the device alone takes because of the prompts in an iteration."""
    decode = replace(side.load, prefill_tokens=0, prefill_pairs=0)
    without = DeviceSide(costs, decode).steady("device_only").iteration_s if decode.device_rows else 0.0
    return max(0.0, side.steady("device_only").iteration_s - without)
