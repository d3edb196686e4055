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
from dataclasses import replace
from functools import cached_property

from ..plan import Strategy
from .component_times import CohortCost, Costs
from .prediction import CohortLoad, Load, Prediction, Terms


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
        self._layers = costs.num_layers
        self._width = costs.device_width(load)
        self._overhead = Terms(overhead=costs.overhead(cohorts=True))
        self._attention = Terms(
            device_attention=costs.device_attention(load), prefill_attention=costs.prefill_attention(load)
        )
        self._passes_alone = self._passes(self._width, load.device_tokens, 0.0)
        self._device_rows = self._passes_alone.plus(self._attention)
        self._covered = costs.covers(replace(load, cohorts=()))

    def steady(self, strategy: Strategy, lanes: Sequence[int] = (), row_tokens: float = 0.0) -> Prediction:
        """Return the iteration that a strategy repeats; see `steady`."""
        if strategy == "device_only" and not lanes:
            return self._device_only
        return self._repeated(strategy, lanes, row_tokens)

    @cached_property
    def _device_only(self) -> Prediction:
        return self._repeated("device_only", (), 0.0)

    def _repeated(self, strategy: Strategy, lanes: Sequence[int], row_tokens: float) -> Prediction:
        layers = self._layers
        rows = [count for count in lanes if count > 0]
        if len(rows) > (most := most_lanes(strategy, layers)):
            raise ValueError(f"{strategy} has {len(rows)} lanes; at most {most} are allowed with {layers} layers")
        kinds = {count: self.costs.cohort(count, row_tokens) for count in set(rows)}
        cohorts = [kinds[count] for count in rows]
        if not cohorts:
            device, chains = self._device_rows.plus(Terms(overhead=self.costs.overhead(cohorts=False))), []
        elif strategy == "async_overlap":
            device, chains = self._async_overlap([(kinds[count], rows.count(count)) for count in kinds])
        elif len(cohorts) == 1:
            device, chains = self._layer_sync(cohorts[0])
        else:
            device, chains = self._pipelining(cohorts[0], cohorts[1])
        critical = max([device, *chains], key=sum)
        iteration_s = critical.total
        iterations = layers + 1 if strategy == "async_overlap" else 1
        return Prediction(
            strategy=strategy,
            iteration_s=iteration_s,
            device=device,
            host=Terms(host_attention=layers / iterations * sum(cohort.job for cohort in cohorts)),
            critical=critical,
            device_tokens=self.load.device_tokens,
            host_tokens=sum(rows) / iterations,
            device_token_s=iteration_s if self.load.device_tokens else None,
            host_token_s=iteration_s * iterations if rows else None,
            extrapolated=not (
                self._covered and all(self._covers(each, strategy, sum(rows)) for each in kinds.values())
            ),
            factors=self.costs.factors,
        )

    def beyond(self, strategy: Strategy, lanes: Sequence[int] = (), row_tokens: float = 0.0) -> tuple[str, ...]:
        """Return what of such an iteration the profile does not cover, in words."""
        layers, apart = self._layers, strategy == "async_overlap"
        cohorts = [
            CohortLoad(id=lane, rows=rows, kv_tokens=rows * row_tokens, first=0, last=layers)
            for lane, rows in enumerate(dict.fromkeys(lanes) if apart else lanes)
            if rows > 0
        ]
        # Cohorts of async_overlap come to the head in iterations of their own, so that equal ones read the same.
        together = [(cohort,) for cohort in cohorts] if apart else [tuple(cohorts)]
        found = [text for some in together or [()] for text in self.costs.beyond(replace(self.load, cohorts=some))]
        return tuple(dict.fromkeys(found))

    def _covers(self, cohort: CohortCost, strategy: Strategy, riding: int) -> bool:
        profile, arriving = self.costs.profile, cohort.rows if strategy == "async_overlap" else riding
        wide = profile.layer.covers(self._width + cohort.width)
        return cohort.covered and wide and profile.head.covers(self.load.device_tokens + arriving)

    def _passes(self, width: int, sampled: int, boarding: float) -> Terms:
        """All passes of one batch, boundary 0 to L."""
        linear = self._layers * self.costs.layer(width) + self.costs.head(sampled)
        return Terms(linear=linear, transfer=(self._layers + 1) * boarding)

    def _beside(self, lane: CohortCost) -> Terms:
        """All passes in which a cohort shares the device rows'."""
        return self._passes(self._width + lane.width, self.load.device_tokens + lane.rows, lane.boarding)

    def _layer_sync(self, lane: CohortCost) -> tuple[Terms, list[Terms]]:
        passes = self._beside(lane).plus(self._overhead)
        waiting = Terms(host_attention=self._layers * lane.job, transfer=self._layers * lane.hop)
        return passes.plus(self._attention), [passes.plus(waiting)]

    def _pipelining(self, first: CohortCost, second: CohortCost) -> tuple[Terms, list[Terms]]:
        layers = self._layers
        own = self._passes(self._width + first.width, 0, first.boarding)
        other = self._passes(second.width, 0, second.boarding)
        head = Terms(linear=self._head_of_both(first, second))
        jobs = Terms(host_attention=layers * (first.job + second.job))
        device = own.plus(other).plus(head).plus(self._attention).plus(self._overhead)
        work, work_of_host, both = device.total, jobs.total, Terms()
        circles = (
            (work, device),
            (work_of_host + first.hop, jobs),
            (own.total + head.total + layers * (first.hop + first.job), own),
            (other.total + head.total + layers * (second.hop + second.job), other),
            ((work + work_of_host + layers * second.hop) / 2, both),
        )
        _, way = max(circles, key=lambda circle: circle[0])
        if way is own or way is other:
            cohort = first if way is own else second
            way = way.plus(head).plus(Terms(host_attention=layers * cohort.job, transfer=layers * cohort.hop))
        elif way is both:
            way = device.plus(jobs).plus(Terms(transfer=layers * second.hop)).times(0.5)
        # Where an iteration begins and ends the host has no jobs, so it takes a little longer than its longest circle.
        return device, [way.times((self._two_cohorts(first, second) + self._overhead.overhead) / way.total)]

    def _two_cohorts(self, first: CohortCost, second: CohortCost) -> float:
        """Return when the last pass of an iteration ends in which both cohorts ride through all layers."""
        costs, last = self.costs, self._layers
        shared, single = costs.layer(self._width + first.width), costs.layer(second.width)
        attention = self._attention.total / last
        now = first_ready = second_ready = late = later = 0.0
        for boundary in range(last):
            share, began = costs.share(boundary), now
            now = max(now, first_ready) + first.boarding + share * shared
            first_ready = max(second_ready, now + first.hop) + first.job
            now = max(now + attention, second_ready) + second.boarding + share * single
            second_ready = max(first_ready, now + second.hop) + second.job
            before, late, later = (late, later), first_ready - now, second_ready - now
            if boundary and max(abs(late - before[0]), abs(later - before[1])) < 1e-12 * now:
                # The jobs are as late as they were a layer ago, and so they will be in all layers to come.
                now += (last - 1 - boundary) * (now - began)
                first_ready, second_ready = now + late, now + later
                break
        share = costs.share(last)
        now = max(now, first_ready) + first.boarding + share * shared
        now = max(now, second_ready) + second.boarding + share * single
        return now + self._head_of_both(first, second)

    def _head_of_both(self, first: CohortCost, second: CohortCost) -> float:
        """Return the time of the head, over whose weights everybody rides together."""
        return self.costs.head(self.load.device_tokens + first.rows + second.rows)

    def _async_overlap(self, lanes: list[tuple[CohortCost, int]]) -> tuple[Terms, list[Terms]]:
        layers = self._layers
        # A cohort is at each of the L + 1 boundaries in one of as many iterations.
        share = 1 / (layers + 1)
        extra = transfer = jobs = 0.0
        ways = []
        for lane, count in lanes:
            riding = self._beside(lane)
            extra += count * share * (riding.linear - self._passes_alone.linear)
            transfer += count * share * riding.transfer
            jobs += count * share * layers * lane.job
            way = Terms(
                linear=share * riding.linear,
                host_attention=share * layers * lane.job,
                transfer=share * (riding.transfer + layers * lane.hop),
                overhead=share * self._overhead.overhead,
            )
            ways.append(way)
        device = self._device_rows.plus(Terms(linear=extra, transfer=transfer, overhead=self._overhead.overhead))
        return device, [Terms(host_attention=jobs), *ways]
