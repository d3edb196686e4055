"""The seconds of iterations that repeat and nothing else: the closed forms of `steady`, for those who need thousands.

Cohorts are even ones here, and pipelining's iterations take their longest circle, to which `steady` adds what its first
and last layer lack.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..plan import Strategy
from .component_times import Costs


class Pacing:
    """What iterations take, by strategy.

    Args:
        costs: times of the parts.
    """

    def __init__(self, costs: Costs) -> None:
        profile, factors = costs.profile, costs.factors
        self._costs = costs
        self._layers = costs.num_layers
        self._overhead = costs.overhead(cohorts=False)
        self._stepwise = costs.overhead(cohorts=True)
        self._host, self._host_factor = profile.host_attention, factors.host_attention
        self._attention, self._attention_factor = profile.device_attention, factors.device_attention
        self._prompts, self._prompts_factor = profile.prefill_attention, factors.prefill_attention

    def seconds(
        self,
        strategy: Strategy,
        rows: int,
        kv_tokens: float,
        host_rows: int = 0,
        row_tokens: float = 0.0,
        prompt: tuple[int, float] = (0, 0.0),
        share: float = 0.5,
        cohorts: int = 0,
    ) -> tuple[float, float]:
        """Return what an iteration takes, and for how much of it the host is busy.

        Args:
            strategy: one of the four.
            rows, kv_tokens: decoding device requests and the tokens of their contexts together.
            host_rows: host requests under way: in one cohort, in two, or in as many as async_overlap may have.
            row_tokens: mean length of their contexts.
            prompt: prompt tokens and their pairs, see `Load`.
            share: of the host rows in pipelining's first cohort.
            cohorts: of async_overlap that are under way at once; L + 1 if 0.
        """
        return self.beside(rows, kv_tokens, prompt).seconds(strategy, host_rows, row_tokens, share, cohorts)

    def beside(self, rows: int, kv_tokens: float, prompt: tuple[int, float] = (0, 0.0)) -> DevicePace:
        """Return the device's side of an iteration, to which host rows can be added in turn; arguments as above."""
        costs = self._costs
        width = costs.width(rows, prompt[0])
        attention = self._attention(rows, kv_tokens) * self._attention_factor if rows else 0.0
        if prompt[0]:
            attention += self._prompts(prompt[1]) * self._prompts_factor
        alone = self._layers * costs.layer(width) + costs.head(rows) + attention + self._overhead
        return DevicePace(self, width, rows, attention, alone)

    def _job(self, rows: float, row_tokens: float) -> float:
        return self._host(rows, rows * row_tokens) * self._host_factor

    def layer_sync(
        self, width: int, rows: int, attention: float, host_rows: int, row_tokens: float
    ) -> tuple[float, float]:
        """Return what `seconds` does, for all host rows in one cohort; the first three arguments as in `DevicePace`."""
        costs, layers = self._costs, self._layers
        own = costs.host_width(host_rows)
        job = self._job(host_rows, row_tokens)
        passes = layers * costs.layer(width + own) + costs.head(rows + host_rows) + (layers + 1) * costs.boarding(own)
        return passes + self._stepwise + max(attention, layers * (job + costs.hop(own))), layers * job

    def pipelining(
        self, width: int, rows: int, attention: float, cohorts: tuple[int, int], row_tokens: float
    ) -> tuple[float, float]:
        """Return the same for two cohorts of so many rows."""
        costs, layers = self._costs, self._layers
        first, second = costs.host_width(cohorts[0]), costs.host_width(cohorts[1])
        one, other = self._job(cohorts[0], row_tokens), self._job(cohorts[1], row_tokens)
        own = layers * costs.layer(width + first) + (layers + 1) * costs.boarding(first)
        apart = layers * costs.layer(second) + (layers + 1) * costs.boarding(second)
        head = costs.head(rows + sum(cohorts))
        work, jobs, hop = own + apart + head + attention + self._stepwise, layers * (one + other), costs.hop(second)
        circles = (
            work,
            jobs + costs.hop(first),
            own + head + layers * (costs.hop(first) + one),
            apart + head + layers * (hop + other),
            (work + jobs + layers * hop) / 2,
        )
        return max(circles), jobs

    def async_overlap(
        self, width: int, rows: int, attention: float, lanes: tuple[int, int], row_tokens: float
    ) -> tuple[float, float]:
        """Return the same for staggered cohorts: their rows together, and how many are under way."""
        costs, layers = self._costs, self._layers
        boundaries, host_rows = layers + 1, lanes[0]
        cohorts = min(host_rows, lanes[1] or boundaries)
        size = host_rows / cohorts
        own = costs.host_width(math.ceil(size))
        job, alone = self._job(size, row_tokens), layers * costs.layer(width) + costs.head(rows)
        riding = layers * costs.layer(width + own) + costs.head(rows + size)
        boarding, jobs = costs.boarding(own), cohorts * layers * job / boundaries
        work = alone + cohorts * ((riding - alone) / boundaries + boarding) + attention + self._stepwise
        way = (riding + layers * (job + costs.hop(own)) + self._stepwise) / boundaries + boarding
        return max(work, jobs, way), jobs


class DevicePace(NamedTuple):
    """The device's side of an iteration that repeats.

    Attributes:
        pacing: what takes how long.
        width: rows of a pass.
        rows: decoding device requests.
        attention: seconds of theirs and of the prompts' through all layers.
        alone: seconds without host rows.
    """

    pacing: Pacing
    width: int
    rows: int
    attention: float
    alone: float

    def seconds(
        self, strategy: Strategy, host_rows: int, row_tokens: float, share: float = 0.5, cohorts: int = 0
    ) -> tuple[float, float]:
        """Return what `Pacing.seconds` does."""
        if not host_rows or strategy == "device_only":
            return self.alone, 0.0
        pacing, width, rows, attention, _ = self
        if strategy == "async_overlap":
            return pacing.async_overlap(width, rows, attention, (host_rows, cohorts), row_tokens)
        first = max(1, round(host_rows * share))
        if strategy == "asymmetric_pipelining" and first < host_rows:
            return pacing.pipelining(width, rows, attention, (first, host_rows - first), row_tokens)
        return pacing.layer_sync(width, rows, attention, host_rows, row_tokens)
