"""Iterations that repeat: a strategy's closed form as a prediction, or as seconds alone where thousands are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..cost_model.amounts import PLAIN, SPLIT
from ..cost_model.component_times import CohortCost, Costs
from ..cost_model.prediction import CohortLoad, Load, Prediction
from ..cost_model.side import Side
from .base import Strategy
from .device_only import DEVICE_ONLY
from .registry import named


def steady(costs: Costs, strategy: str, load: Load, lanes: Sequence[int] = (), row_tokens: float = 0.0) -> Prediction:
    """Return the iteration that a strategy repeats.

    Args:
        costs: times of the parts.
        strategy: its name.
        load: the device's side; cohorts in it do not count.
        lanes: host rows of each cohort under way.
        row_tokens: mean length of a host request's context.

    Raises:
        ValueError: the strategy has fewer lanes.
    """
    return DeviceSide(costs, load).steady(strategy, lanes, row_tokens)


class Pace:
    """The seconds of iterations that repeat: the device's side, to which cohorts of several strategies can be added.

    Args:
        costs: times of the parts.
        load: the device's side; cohorts in it do not count.

    Attributes:
        alone: seconds without host rows.
    """

    def __init__(self, costs: Costs, load: Load) -> None:
        self._side = Side(costs, load, PLAIN)
        self.alone = self._side.alone

    def seconds(self, strategy: str, lanes: Sequence[int], row_tokens: float) -> tuple[float, float]:
        """Return what an iteration takes, and for how much of it the host is busy; arguments as of `steady`."""
        if not lanes:
            return self.alone, 0.0
        side, chosen = self._side, named(strategy)
        cohorts = _costs(side.costs, lanes, row_tokens)
        device, host, chain = chosen.closed_form(side, cohorts)
        return max(device, host, chain), host


class DeviceSide:
    """The device's part of an iteration, to which cohorts of several strategies can be added in turn.

    Args:
        costs: times of the parts.
        load: the device's side; cohorts in it do not count.
    """

    def __init__(self, costs: Costs, load: Load) -> None:
        self.costs = costs
        self.load = load
        self._side = Side(costs, load, SPLIT)
        self._covered = costs.covers(replace(load, cohorts=()))
        self._alone: Prediction | None = None

    def steady(self, strategy: str, lanes: Sequence[int] = (), row_tokens: float = 0.0) -> Prediction:
        """Return the iteration that a strategy repeats; see `steady`."""
        rows = [count for count in lanes if count > 0]
        if rows or strategy != DEVICE_ONLY.name:
            return self._repeated(named(strategy), rows, row_tokens)
        if self._alone is None:
            self._alone = self._repeated(DEVICE_ONLY, rows, row_tokens)
        return self._alone

    def _repeated(self, strategy: Strategy, rows: Sequence[int], row_tokens: float) -> Prediction:
        side, layers, tokens = self._side, self._side.num_layers, self.load.device_tokens
        if len(rows) > (most := strategy.most_cohorts(layers)):
            raise ValueError(f"{strategy.name} has {len(rows)} lanes; at most {most} are allowed with {layers} layers")
        cohorts = _costs(self.costs, rows, row_tokens)
        device, host, chain = (strategy if cohorts else DEVICE_ONLY).closed_form(side, cohorts)
        critical = side.amounts.longest((device, host, chain))
        iterations = [strategy.iterations_a_token(cohort, layers) for cohort in range(len(rows))]
        iteration_s = critical.total
        return Prediction(
            strategy=strategy.name,
            iteration_s=iteration_s,
            device=device,
            host=host,
            critical=critical,
            device_tokens=tokens,
            host_tokens=sum(count / each for count, each in zip(rows, iterations, strict=True)),
            device_token_s=iteration_s if tokens else None,
            host_token_s=iteration_s * max(iterations) if rows else None,
            extrapolated=not (self._covered and self._covers(strategy, cohorts)),
            factors=self.costs.factors,
        )

    def beyond(self, strategy: str, lanes: Sequence[int] = (), row_tokens: float = 0.0) -> tuple[str, ...]:
        """Return what of such an iteration the profile does not cover, in words."""
        cohorts = _costs(self.costs, [rows for rows in lanes if rows > 0], row_tokens)
        found = [
            text
            for arriving in self._arrivals(named(strategy), cohorts) or [()]
            for text in self.costs.beyond(replace(self.load, cohorts=tuple(map(self._riding, arriving))))
        ]
        return tuple(dict.fromkeys(found))

    def _riding(self, cohort: CohortCost) -> CohortLoad:
        return CohortLoad(id=0, rows=cohort.rows, kv_tokens=cohort.kv_tokens, first=0, last=self.costs.num_layers)

    def _arrivals(self, strategy: Strategy, cohorts: Sequence[CohortCost]) -> list[tuple[CohortCost, ...]]:
        """Return the cohorts that come to the head in one iteration, for each kind of iteration."""
        layers = self.costs.num_layers
        pace = [strategy.iterations_a_token(cohort, layers) for cohort in range(len(cohorts))]
        always = tuple(cohort for cohort, each in zip(cohorts, pace, strict=True) if each == 1)
        others = dict.fromkeys(cohort for cohort, each in zip(cohorts, pace, strict=True) if each > 1)
        return [(*always, other) for other in others] or ([always] if always else [])

    def _covers(self, strategy: Strategy, cohorts: Sequence[CohortCost]) -> bool:
        profile, costs, width = self.costs.profile, self.costs, self._side.width
        wide = all(costs.covers_cohort(each) and profile.layer.covers(width + each.width) for each in set(cohorts))
        return wide and all(
            profile.head.covers(self.load.device_tokens + sum(each.rows for each in arriving))
            for arriving in self._arrivals(strategy, cohorts)
        )


def _costs(costs: Costs, rows: Sequence[int], row_tokens: float) -> list[CohortCost]:
    kinds = {count: costs.cohort(count, row_tokens) for count in set(rows)}
    return [kinds[count] for count in rows]
