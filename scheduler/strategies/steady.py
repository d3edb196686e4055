"""Iterations that repeat: a strategy's closed form as a prediction, or as its times alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..cost_model.component_times import CohortCost, Costs
from ..cost_model.prediction import CohortLoad, Load, Prediction, Timing
from ..cost_model.side import PLAIN, SPLIT, Side
from . import named
from .base import Strategy, alike
from .device_only import DEVICE_ONLY


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


class DeviceSide:
    """The device's part of an iteration, to which cohorts of several strategies can be added in turn.

    Args:
        costs: times of the parts.
        load: the device's side; cohorts in it do not count.
    """

    def __init__(self, costs: Costs, load: Load) -> None:
        self.costs = costs
        self.load = load
        self._side = Side(costs, load, PLAIN)
        self._alone: Timing | None = None

    @property
    def alone(self) -> Timing:
        """An iteration without host rows."""
        if self._alone is None:
            seconds = self._side.alone
            self._alone = Timing(seconds, seconds, 0.0, self.load.device_tokens, 0.0)
        return self._alone

    def timing(self, strategy: str, lanes: Sequence[int], row_tokens: float) -> Timing:
        """Return what of `steady` decisions are made by, in a fraction of its time."""
        if not lanes:
            return self.alone
        chosen = named(strategy)
        device, host, chain = chosen.closed_form(self._side, _costs(self.costs, lanes, row_tokens))
        tokens = chosen.tokens(lanes, self.costs.num_layers)
        return Timing(max(device, host, chain), device, host, self.load.device_tokens, tokens)

    def steady(self, strategy: str, lanes: Sequence[int] = (), row_tokens: float = 0.0) -> Prediction:
        """Return the iteration that a strategy repeats; see `steady`."""
        chosen, rows, layers = named(strategy), [count for count in lanes if count > 0], self.costs.num_layers
        if len(rows) > (most := chosen.most_cohorts(layers)):
            raise ValueError(f"{strategy} has {len(rows)} lanes; at most {most} are allowed with {layers} layers")
        side, cohorts = Side(self.costs, self.load, SPLIT), _costs(self.costs, rows, row_tokens)
        device, host, chain = (chosen if cohorts else DEVICE_ONLY).closed_form(side, cohorts)
        critical = side.amounts.longest((device, host, chain))
        iteration_s, tokens = critical.total, self.load.device_tokens
        covered = self.costs.covers(replace(self.load, cohorts=()))
        return Prediction(
            strategy=strategy,
            iteration_s=iteration_s,
            device=device,
            host=host,
            critical=critical,
            device_tokens=tokens,
            host_tokens=chosen.tokens(rows, layers) if rows else 0.0,
            device_token_s=iteration_s if tokens else None,
            host_token_s=iteration_s * chosen.iterations_a_token(len(rows) - 1, layers) if rows else None,
            extrapolated=not (covered and self._covers(chosen, cohorts)),
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
        layers, always = self.costs.num_layers, len(cohorts)
        while always and strategy.iterations_a_token(always - 1, layers) > 1:
            always -= 1
        each = tuple(cohorts[:always])
        return [(*each, other) for other, _ in alike(cohorts[always:])] or ([each] if each else [])

    def _covers(self, strategy: Strategy, cohorts: Sequence[CohortCost]) -> bool:
        profile, costs, width = self.costs.profile, self.costs, self._side.width
        kinds = [kind for kind, _ in alike(cohorts)]
        wide = all(costs.covers_cohort(each) and profile.layer.covers(width + each.width) for each in kinds)
        return wide and all(
            profile.head.covers(self.load.device_tokens + sum(each.rows for each in arriving))
            for arriving in self._arrivals(strategy, cohorts)
        )


def _costs(costs: Costs, rows: Sequence[int], row_tokens: float) -> list[CohortCost]:
    kinds = {count: costs.cohort(count, row_tokens) for count in set(rows)}
    return [kinds[count] for count in rows]
