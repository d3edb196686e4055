"""What each strategy reaches beside an emulated device, and what the cost model says that it should reach.

The device is emulated, all else is real. The host is measured before and after each round, since its speed wanders; in
between every strategy has its turn, with as many host requests as keep the host busy, or fewer where its memory ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp

from ..execution.batch import Buckets, padding_of
from ..execution.emulated_device import EmulatedDevice
from ..host_offload import HostKVConfig, HostWorker, allocate
from ..scheduler import Capacity, CostModel, Decision, Load, Prediction, Profile, Terms
from ..scheduler.cost_model.component_times import Costs
from ..scheduler.cost_model.hardware import DeviceSpec, HostSpec, ModelShape
from ..scheduler.cost_model.roofline import describe
from ..scheduler.planner.candidates import Outlook, Valuation
from ..scheduler.strategies import STRATEGIES, named
from ..scheduler.strategies.steady import steady
from ..tracing.recorder import Recorder
from .calibration import Calibration, calibrate
from .steady_load import Interval, SteadyLoad

HOST_SHARE = 0.88
"""How much of the time that a strategy gives the host is filled: a host that is late makes the device wait."""

AS_GOOD = 0.03
"""Gain that is not worth larger cohorts."""

CALIBRATION_PART = 5
"""A turn takes so many times as long as each measurement of the host before it."""

TRACED_ITERATIONS = 20
"""Of each strategy."""


@dataclass(frozen=True, kw_only=True)
class OverlapBenchmark:
    """What to measure.

    Attributes:
        device, model: what is emulated.
        device_kv_tokens: KV on the device.
        context: mean context of the requests, in tokens.
        host_kv_bytes: KV on the host.
        strategies: in their order within a round.
        seconds: measured of each strategy in each round.
        rounds: how often each strategy has its turn.
        page_size: tokens in a page.
        dtype: of KV, queries and attention on the host.

    Raises:
        ValueError: a number is out of range, or there is no such strategy.
    """

    device: DeviceSpec
    model: ModelShape
    device_kv_tokens: int
    context: int
    host_kv_bytes: int
    strategies: Sequence[str] = STRATEGIES
    seconds: float = 2.0
    rounds: int = 5
    page_size: int = 64
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            if strategy not in STRATEGIES:
                raise ValueError(f"there is no strategy {strategy!r}; the strategies are {', '.join(STRATEGIES)}")
        for name, least in (("rounds", 1), ("context", self.page_size)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; at least {least} is needed")
        if self.device_kv_tokens < (needed := 2 * (self.context + 2 * self.page_size)):
            raise ValueError(
                f"device_kv_tokens is {self.device_kv_tokens}; requests of {self.context} tokens need {needed}"
            )
        if self.host_requests < 1:
            raise ValueError(f"host_kv_bytes is {self.host_kv_bytes}; not one request of {self.context} tokens fits")

    @property
    def host_requests(self) -> int:
        """Requests that the host's memory holds, with two pages to grow by for each."""
        return self.host_kv_tokens // self.page_size // (-(-self.context // self.page_size) + 2)

    @property
    def host_kv_tokens(self) -> int:
        """Tokens in whole pages of the host's memory."""
        return self.host_kv_bytes // self._layout.page_bytes * self.page_size

    @property
    def _layout(self) -> HostKVConfig:
        return HostKVConfig(
            num_layers=self.model.num_layers,
            num_kv_heads=self.model.num_kv_heads,
            head_width=self.model.head_dim,
            page_size=self.page_size,
            dtype=self.dtype,
        )

    @cached_property
    def capacity(self) -> Capacity:
        """What the engine may hold; any prompt that fits is computed in one iteration."""
        return Capacity(
            device_kv_tokens=self.device_kv_tokens,
            host_kv_tokens=self.host_kv_tokens,
            page_size=self.page_size,
            max_num_seqs=self.device_kv_tokens // self.context + 1,
            max_host_seqs=self.host_requests,
            max_prefill_tokens=self.device_kv_tokens,
        )

    @cached_property
    def buckets(self) -> Buckets:
        """Batch shapes of the engine."""
        return Buckets(capacity=self.capacity, table_width=self.capacity.device_pages, ragged_attention=True)

    @cached_property
    def profile(self) -> Profile:
        """The device's times; those of the host have to be measured."""
        unknown = HostSpec(name="not yet measured", cores=1, memory_gb=1.0, attention_gb_per_s=1.0)
        padding = padding_of(self.buckets)
        return describe(self.device, unknown, self.model, page_size=self.page_size, padding=padding)

    def steady_load(self) -> SteadyLoad:
        """Allocate the host's memory and make an engine.

        Raises:
            MemoryError: the machine does not have it.
        """
        pages = allocate(self._layout, self.host_kv_bytes, jax.devices("cpu")[0])
        worker = HostWorker(pages, num_heads=self.model.num_heads)
        dtype = jnp.dtype(self.dtype)
        device = EmulatedDevice(self.profile, self.model, dtype=dtype, buckets=self.buckets)
        return SteadyLoad(device=device, worker=worker, context=self.context)


@dataclass(frozen=True, kw_only=True)
class CohortSizes:
    """How host requests ride.

    Attributes:
        lanes: host rows of each cohort, see `Decision`.
        under_way: the same as they are filled.
    """

    lanes: tuple[int, ...]
    under_way: tuple[int, ...]

    @property
    def riding(self) -> int:
        """Host requests under way at once."""
        return sum(self.under_way)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A strategy's turn in a round.

    Attributes:
        strategy: which one.
        cohorts: how host requests rode.
        interval: what happened.
        prediction: an iteration of it, by the cost model.
    """

    strategy: str
    cohorts: CohortSizes
    interval: Interval
    prediction: Prediction

    @property
    def achieved(self) -> float:
        """Tokens a second over the predicted ones."""
        return self.interval.tokens_per_s / self.prediction.tokens_per_s


def run(
    benchmark: OverlapBenchmark,
    steady_load: SteadyLoad,
    *,
    progress: Callable[[str], object],
    recorder: Recorder | None = None,
) -> list[Trial]:
    """Give every strategy its turn in every round.

    Args:
        benchmark: what to measure.
        steady_load: where.
        progress: told what has been done: "host" once before and once after each round, or a strategy.
        recorder: records some iterations of each strategy, after its last turn.
    """
    turns = []
    before = measure_host(benchmark, steady_load)
    progress("host")
    for round_ in range(benchmark.rounds):
        had = []
        for strategy in benchmark.strategies:
            cohorts = choose(benchmark, strategy, before)
            had.append((strategy, cohorts, _turn(benchmark, steady_load, strategy, cohorts, before)))
            if recorder is not None and round_ == benchmark.rounds - 1:
                steady_load.engine.record(recorder)
                steady_load.run(Decision(strategy=strategy, lanes=cohorts.lanes), TRACED_ITERATIONS)
                steady_load.engine.record(None)
            progress(strategy)
        after = measure_host(benchmark, steady_load)
        progress("host")
        model = before.plus(after).model(benchmark.profile, context=benchmark.context)
        for strategy, cohorts, interval in had:
            prediction = predict(model, strategy, interval, cohorts.under_way)
            turns.append(Trial(strategy=strategy, cohorts=cohorts, interval=interval, prediction=prediction))
        before = after
    steady_load.clear()
    return turns


def measure_host(benchmark: OverlapBenchmark, steady_load: SteadyLoad) -> Calibration:
    """Measure the host's part of the profile; see `calibrate`."""
    seconds = benchmark.seconds / CALIBRATION_PART
    return calibrate(benchmark.profile, steady_load, host_requests=benchmark.host_requests, seconds=seconds)


def _turn(
    benchmark: OverlapBenchmark, steady_load: SteadyLoad, strategy: str, cohorts: CohortSizes, calibration: Calibration
) -> Interval:
    # Host requests grow while they are measured; their mean is to be the context that was asked for.
    load, context = _load(benchmark, calibration), benchmark.context
    model = calibration.model(benchmark.profile, context=context)
    token_s = steady(model.costs, strategy, load, cohorts.under_way, float(context)).host_token_s
    grown = min(benchmark.seconds / token_s / 2, context / 4) if token_s else 0.0
    steady_load.fill(cohorts.riding, context=round(context - grown))
    layers = benchmark.profile.num_layers
    turn = named(strategy).iterations_a_token(len(cohorts.lanes) - 1, layers)
    steady_load.run(Decision(strategy=strategy, lanes=cohorts.lanes), layers + turn)
    return steady_load.measure(benchmark.seconds, multiple=turn)


def choose(benchmark: OverlapBenchmark, strategy: str, calibration: Calibration) -> CohortSizes:
    """Return the cohorts that make most of a strategy while the host keeps some time to spare.

    Of those that are as good but for a few per cent, the smallest: their requests wait least for a token, and the
    device least for a job that takes longer than others.
    """
    load, context = _load(benchmark, calibration), float(benchmark.context)
    measured = calibration.model(benchmark.profile, context=benchmark.context).profile
    slower = Costs(measured, Terms(1.0, 1.0, 1.0, 1.0 / HOST_SHARE, 1.0, 1.0))
    outlook = Outlook(loads=((1.0, load),), host_rows=benchmark.host_requests, row_tokens=context)
    best = Valuation(slower, outlook).best(strategy)
    found = [CohortSizes(lanes=best.lanes, under_way=best.under_way), *_full_batches(benchmark, strategy)]
    rates = [steady(slower, strategy, load, each.under_way, context).tokens_per_s for each in found]
    good = [each for each, rate in zip(found, rates, strict=True) if rate >= max(rates) * (1 - AS_GOOD)]
    return min(good, key=lambda each: max(each.lanes, default=0))


def _full_batches(benchmark: OverlapBenchmark, strategy: str) -> list[CohortSizes]:
    """Return cohorts that leave no row of their batches empty: one row more is paid for like a batch more."""
    chosen = named(strategy)
    most = chosen.most_cohorts(benchmark.profile.num_layers)
    return [
        CohortSizes(lanes=(size,) * count, under_way=(size,) * count)
        for size in benchmark.buckets.host_rows
        for count in range(most if chosen.through else 1, most + 1)
        if 0 < size * count <= benchmark.host_requests
    ]


def _load(benchmark: OverlapBenchmark, calibration: Calibration) -> Load:
    rows = max(1, round(calibration.device_rows))
    return Load(device_rows=rows, device_kv_tokens=rows * benchmark.context)


def predict(model: CostModel, strategy: str, interval: Interval, under_way: Sequence[int]) -> Prediction:
    """Return what the cost model says of an interval's requests.

    Device requests come and go, and those that begin have their first token of a prompt: how many tokens an iteration
    makes for them is counted, how long it takes and what the host adds is predicted.
    """
    tokens = interval.device_rows * interval.device_context
    load = Load(device_rows=round(interval.device_rows), device_kv_tokens=tokens)
    prediction = steady(model.costs, strategy, load, under_way, interval.host_context)
    return replace(prediction, device_tokens=interval.device_tokens / interval.seen.plans)
