"""Iterations that repeat: the closed forms of the four strategies' rates, without walking a plan.

Per layer, a pass over the weights takes S, device attention a, a cohort's host attention h, its handover H. Then an
iteration of L layers, apart from the head and what stands between iterations, takes

    device_only            L * (S + a)
    layer_sync             L * (S + max(a, H + h))
    asymmetric_pipelining  L * max(S0 + S1 + a,  h0 + h1,  S0 + H + h0,  S1 + H + h1,  (S0 + S1 + a + h0 + h1 + H) / 2)
    async_overlap          max(its passes and device attention,  its jobs,  a cohort's way / (L + 1))

The terms of pipelining are the circles in which its passes and jobs wait for each other (the last one leads through
both time lines and twice through a layer); the longest sets the pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .costs import Costs
from .plan import Strategy
from .prediction import Load, Prediction, Terms


def most_lanes(strategy: Strategy, num_layers: int) -> int:
    """Return how many cohorts a strategy may have."""
    lanes = {"device_only": 0, "layer_sync": 1, "asymmetric_pipelining": 2, "async_overlap": num_layers + 1}
    return lanes[strategy]


def steady(
    costs: Costs, strategy: Strategy, load: Load, lanes: Sequence[int] = (), row_tokens: float = 0.0
) -> Prediction:
    """Return the iteration that a strategy repeats.

    Args:
        costs: times of the parts.
        strategy: one of the four.
        load: the device's side; cohorts in it do not count.
        lanes: host rows of each cohort, see `Decision`.
        row_tokens: mean length of a host request's context.

    Raises:
        ValueError: the strategy has fewer lanes.
    """
    lanes = tuple(rows for rows in lanes if rows > 0)
    most = most_lanes(strategy, costs.num_layers)
    if len(lanes) > most:
        raise ValueError(f"{len(lanes)} lanes for {strategy} of {costs.num_layers} layers; at most {most} are allowed")
    parts = _Parts.of(costs, load, lanes, row_tokens)
    if not lanes:
        device, chains = parts.alone(), []
    elif strategy == "async_overlap":
        device, chains = _async_overlap(parts)
    elif len(lanes) == 1:
        device, chains = _layer_sync(parts)
    else:
        device, chains = _pipelining(parts)
    critical = max([device, *chains], key=sum)
    iterations = costs.num_layers + 1 if strategy == "async_overlap" else 1
    jobs = costs.num_layers / iterations
    return Prediction(
        strategy=strategy,
        iteration_s=critical.total,
        device=device,
        host=Terms(host_attention=jobs * sum(lane.job for lane in parts.lanes)),
        critical=critical,
        device_tokens=load.device_tokens,
        host_tokens=sum(lanes) / iterations,
        device_token_s=critical.total if load.device_tokens else None,
        host_token_s=critical.total * iterations if lanes else None,
        extrapolated=not parts.covered(),
    )


@dataclass(frozen=True, slots=True)
class _Lane:
    rows: int
    width: int
    job: float
    hop: float
    boarding: float


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an iteration is put together from; `attention` is that of the device and of prompts through all layers."""

    costs: Costs
    load: Load
    width: int
    attention: Terms
    lanes: tuple[_Lane, ...]
    row_tokens: float

    @classmethod
    def of(cls, costs: Costs, load: Load, lanes: Sequence[int], row_tokens: float) -> _Parts:
        attention = Terms(
            device_attention=costs.device_attention(load), prefill_attention=costs.prefill_attention(load)
        )
        kinds: dict[int, _Lane] = {}
        for rows in lanes:
            if rows not in kinds:
                width = costs.host_width(rows)
                kinds[rows] = _Lane(
                    rows,
                    width,
                    costs.host_attention(rows, rows * row_tokens),
                    costs.hop(width),
                    costs.boarding(width),
                )
        own = tuple(kinds[rows] for rows in lanes)
        return cls(costs, load, costs.device_width(load), attention, own, row_tokens)

    @property
    def layers(self) -> int:
        return self.costs.num_layers

    def passes(self, width: int, sampled: int, boarding: float) -> Terms:
        """All passes of one batch, boundary 0 to L."""
        linear = self.layers * self.costs.layer(width) + self.costs.head(sampled)
        return Terms(linear=linear, transfer=(self.layers + 1) * boarding)

    def first_pass(self, width: int) -> Terms:
        return Terms(linear=self.costs.share(0) * self.costs.layer(width))

    def last_pass(self, width: int, sampled: int) -> Terms:
        return Terms(linear=self.costs.share(self.layers) * self.costs.layer(width) + self.costs.head(sampled))

    def alone(self) -> Terms:
        """The device's own rows without anybody."""
        own = self.passes(self.width, self.load.device_tokens, 0.0)
        return own.plus(self.attention, Terms(overhead=self.costs.overhead))

    def covered(self) -> bool:
        profile = self.costs.profile
        return self.costs.covers(self.load) and all(
            profile.host_attention.covers(lane.rows, lane.rows * self.row_tokens)
            and profile.layer.covers(self.width + lane.width)
            and profile.hop.covers(lane.width)
            for lane in self.lanes
        )


def _layer_sync(parts: _Parts) -> tuple[Terms, list[Terms]]:
    lane, overhead = parts.lanes[0], Terms(overhead=parts.costs.overhead)
    passes = parts.passes(parts.width + lane.width, parts.load.device_tokens + lane.rows, lane.boarding)
    waiting = Terms(host_attention=lane.job, transfer=lane.hop).times(parts.layers)
    return passes.plus(parts.attention, overhead), [passes.plus(waiting, overhead)]


def _pipelining(parts: _Parts) -> tuple[Terms, list[Terms]]:
    first, second = parts.lanes
    layers, overhead = parts.layers, Terms(overhead=parts.costs.overhead)
    shared, sampled = parts.width + first.width, parts.load.device_tokens + first.rows
    own, other = parts.passes(shared, sampled, first.boarding), parts.passes(second.width, second.rows, second.boarding)
    jobs = Terms(host_attention=layers * (first.job + second.job))
    begin, end = parts.first_pass(shared), parts.last_pass(second.width, second.rows)
    attention = parts.attention.times(1 / layers)
    device = own.plus(other, parts.attention, overhead)

    def way(passes: Terms, job: float, hop: float, between: Terms) -> Terms:
        return passes.plus(Terms(host_attention=layers * job, transfer=layers * hop), between, overhead)

    return device, [
        # Between the last job of an iteration and the first of the next one the host has nothing to do.
        jobs.plus(end, begin, Terms(transfer=first.hop), overhead),
        way(own, first.job, first.hop, end),
        way(other, second.job, second.hop, begin.plus(attention)),
        device.plus(jobs, Terms(transfer=layers * second.hop)).times(0.5),
    ]


def _async_overlap(parts: _Parts) -> tuple[Terms, list[Terms]]:
    layers, sampled = parts.layers, parts.load.device_tokens
    alone = parts.passes(parts.width, sampled, 0.0)
    kinds = {lane.rows: lane for lane in parts.lanes}
    riding = {
        rows: parts.passes(parts.width + lane.width, sampled + lane.rows, lane.boarding) for rows, lane in kinds.items()
    }
    # A cohort is at each of the L + 1 boundaries in one of as many iterations.
    share = 1 / (layers + 1)
    extra = [riding[lane.rows].plus(alone.times(-1.0)).times(share) for lane in parts.lanes]
    device = parts.alone().plus(*extra)
    jobs = Terms(host_attention=layers * share * sum(lane.job for lane in parts.lanes))
    ways = [
        riding[rows].plus(
            Terms(host_attention=layers * lane.job, transfer=layers * lane.hop, overhead=parts.costs.overhead)
        )
        for rows, lane in kinds.items()
    ]
    return device, [jobs, *(way.times(share) for way in ways)]
