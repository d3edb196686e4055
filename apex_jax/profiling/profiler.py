"""Measures what an engine's iterations consist of on this machine, by running plans: the profile of a cost model.

Everything is timed in place. Iterations are queued one behind the other as the engine does it, and the host's jobs run
beside a device that goes on with its own rows. What one part takes is the difference between plans that differ in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from ..execution.batch import padding_of
from ..execution.executor import Executor, Submitted
from ..execution.sampler import seed_words
from ..host_offload import HostJob
from ..sampling_params import SamplingParams
from ..scheduler import AttentionTime, Curve, Plan, Profile, ProfileKey, prompt_pairs
from ..scheduler.strategies import ASYNC_OVERLAP, LAYER_SYNC
from .probe_plans import ProfilePlans
from .probe_sizes import Points, ProfileSizes, beyond_first, positive

POINT_SECONDS = 0.6
"""How long one point is measured at most, beyond the fewest iterations."""

FEWEST, MOST = 4, 40
"""Iterations of a point."""


class Profiler:
    """Measures a profile on an executor that serves nobody; it forgets all requests before and after.

    Args:
        executor: with a host worker, or the host's times cannot be measured.
        key: what the profile will be valid for.
        kv_bytes_per_token: KV of one token through all layers.
        pre_share: pre-attention's part of a layer's weights.
        on_point: called after each measured point.
        clock: seconds that pass.
    """

    def __init__(
        self,
        executor: Executor,
        key: ProfileKey,
        *,
        kv_bytes_per_token: int,
        pre_share: float,
        on_point: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if executor.worker is None:
            raise ValueError("a profile needs a host tier: give host_kv_bytes")
        self.executor = executor
        self.worker = executor.worker
        self.key = key
        self.kv_bytes_per_token = kv_bytes_per_token
        self.pre_share = pre_share
        self.on_point = on_point
        self.clock = clock
        device, buckets = executor.device, executor.buckets
        self.layers = device.num_layers
        self.plans = ProfilePlans(num_layers=self.layers, capacity=buckets.capacity)
        self.sizes = ProfileSizes.of(buckets)

    def measure(self) -> Profile:
        """Return the profile."""
        self.executor.reset()
        try:
            for slot in range(self.executor.buckets.slots):
                self.executor.device.assign_slot(slot, SamplingParams(), seed_words(slot, 0), ())
            return self._measure()
        finally:
            self.executor.reset()
            self.executor.rest()

    def _measure(self) -> Profile:
        page, rows = self.executor.buckets.page_size, self.sizes.attention_rows
        head = self._head()
        decode = {n: self._seconds(lambda turn, n=n: self._alone(n)) for n in self.sizes.rows}
        attention = self._device_attention()
        prompts, pairs = self._prompts(head)
        own = ((n, (taken - head(n) - attention(n * page)) / self.layers) for n, taken in decode.items())
        layer = Curve.fit(positive([*own, *prompts]))
        host = self._host_attention()
        stepwise, boarding, hop = self._handovers(decode[rows], layer, head, host, attention(rows * page) / self.layers)
        return Profile(
            key=self.key,
            described=False,
            num_layers=self.layers,
            page_size=page,
            kv_bytes_per_token=self.kv_bytes_per_token,
            layer=layer,
            head=head,
            pre_share=self.pre_share,
            device_attention=AttentionTime(rows=Curve.constant(0.0), tokens=attention),
            prefill_attention=pairs,
            host_attention=host,
            hop=hop,
            boarding=Curve.constant(boarding),
            migration=self._migration(),
            iteration_overhead=0.0,
            stepwise_overhead=stepwise,
            padding=padding_of(self.executor.buckets),
        )

    def _alone(self, rows: int, length: int | None = None) -> Plan:
        return self.plans.decode(rows, length or self.executor.buckets.page_size)

    def _head(self) -> Curve:
        """Sampling several times in a row."""
        points: Points = []
        device = self.executor.device
        for rows in self.sizes.head_rows:

            def several(count: int, rows: int = rows) -> float:
                begin = self.clock()
                ends = [device.head(rows) for _ in range(count)]
                device.fetch(ends[-1], rows)
                return self.clock() - begin

            several(1)
            points.append((rows, statistics.median((several(5) - several(1)) / 4 for _ in range(5))))
            self.on_point()
        return Curve.fit(positive(points))

    def _device_attention(self) -> Curve:
        """By how much longer contexts lengthen an iteration of the same rows."""
        rows = self.sizes.attention_rows
        points = [
            (rows * length, self._seconds(lambda turn, n=length: self._alone(rows, n)))
            for length in self.sizes.attention_lengths
        ]
        return beyond_first(points)

    def _prompts(self, head: Curve) -> tuple[Points, Curve]:
        """Layers over prompt tokens, and attention over pairs, told apart by the same tokens at later starts."""
        sizes = self.sizes
        most, chunk, rows = sizes.prompts[-1], sizes.chunk, sizes.mixed_rows
        seconds = {n: self._seconds(lambda turn, n=n: self.plans.prefill(n)) for n in sizes.prompts}
        later = [
            (prompt_pairs(chunk, start), self._seconds(lambda turn, s=start: self.plans.prefill(chunk, s)))
            for start in sizes.starts
        ]
        pairs = beyond_first([(prompt_pairs(chunk, 0), seconds[chunk]), *later]) if later else Curve.constant(0.0)
        # Attention is a line over pairs, and what a whole prompt takes has been measured: layers get the difference.
        pairs = Curve.fit(
            [*(point for point in pairs.points if point[0] < sizes.pairs), (sizes.pairs, pairs(sizes.pairs))]
        )
        points: Points = [
            (tokens, (taken - head(1) - pairs(prompt_pairs(tokens, 0))) / self.layers)
            for tokens, taken in seconds.items()
        ]
        widest = self._seconds(lambda turn: self.plans.prefill(most, rows=rows))
        beside = self.executor.buckets.mixed_rows[-1]
        points.append((most + beside, (widest - head(1 + rows) - pairs(prompt_pairs(most, 0))) / self.layers))
        return points, pairs

    def _host_attention(self) -> AttentionTime:
        """Jobs of one cohort that follow each other beside the device's own rows.

        Of one that goes from boundary to boundary there would be a job an iteration, and the cores would sleep in
        between and wake slowly, as they do not where the host has enough to do to be worth it.
        """
        page, most = self.executor.buckets.page_size, self.sizes.length_rows
        short = {rows: self._job(rows, page) for rows in self.sizes.job_rows}
        longer = [(most * length, self._job(most, length)) for length in self.sizes.host_lengths]
        tokens = beyond_first([(most * page, short[most]), *longer])
        own = ((rows, seconds - tokens(rows * page)) for rows, seconds in short.items())
        return AttentionTime(rows=Curve.fit(positive(own)), tokens=tokens)

    def _job(self, rows: int, length: int) -> float:
        """Return the median time that a job occupies the host, from its input's arrival to its result's leaving."""
        taken: list[int] = []

        def listen(job: HostJob) -> None:
            if job.kind == "attend":
                taken.append(job.ended_ns - job.fetched_ns)

        self.worker.observers.append(listen)
        try:
            self._hybrid(LAYER_SYNC.name, (rows,), length)
        finally:
            self.worker.observers.remove(listen)
        return statistics.median(taken) / 1e9

    def _hybrid(self, strategy: str, lanes: Sequence[int], length: int) -> float:
        plan = self._alone(self.sizes.attention_rows)
        seconds = self._seconds(lambda turn: self.plans.hybrid(plan, strategy, lanes, length, turn=turn))
        self.executor.rest()
        return seconds

    def _handovers(
        self, alone: float, layer: Curve, head: Curve, host: AttentionTime, attention: float
    ) -> tuple[float, float, Curve]:
        """What cohorts cost beside their jobs: going boundary by boundary, boarding a pass, and the hop.

        Args:
            alone: an iteration of the device's own rows.
            layer, head: linear time of a layer, and of the head over rows.
            host: the cohorts' jobs.
            attention: of the device's own rows in one layer.
        """
        page, least, rows = self.executor.buckets.page_size, self.sizes.host_rows[0], self.sizes.attention_rows
        one = self._hybrid(ASYNC_OVERLAP.name, (least,), page)
        cohorts = min(4, self.layers + 1, self.executor.buckets.capacity.max_host_seqs // least)
        several = self._hybrid(ASYNC_OVERLAP.name, (least,) * cohorts, page)
        wider = layer(rows + least) - layer(rows)
        boarding = max(0.0, (several - one) / (cohorts - 1) - wider) if cohorts > 1 else 0.0
        stepwise = max(0.0, one - alone - boarding - wider)
        hops: Points = []
        for count in self.sizes.host_rows:
            together = self._hybrid(LAYER_SYNC.name, (count,), page)
            passes = alone + stepwise + (self.layers + 1) * boarding
            passes += self.layers * (layer(rows + count) - layer(rows)) + head(rows + count) - head(rows)
            waiting = (together - passes) / self.layers + attention
            hops.append((count, waiting - host(count, count * page)))
        return stepwise, boarding, Curve.fit(positive(hops))

    def _migration(self) -> Curve:
        """A request's pages to the host and back; the mean of the two."""
        page, counters, executor = self.executor.buckets.page_size, self.executor.host, self.executor
        points: Points = []
        for pages in self.sizes.moved_pages:
            taken: list[float] = []
            while len(taken) < 2 or (len(taken) < 3 and sum(taken) < POINT_SECONDS):
                before = counters.move_ns
                executor.fetch(executor.submit(self.plans.evict(self._alone(1), pages)))
                executor.fetch(executor.submit(self.plans.fetch(self._alone(1), pages)))
                executor.wait_for_fetch()
                executor.fetch(executor.submit(self.plans.land(self._alone(1), pages)))
                taken.append((counters.move_ns - before) / 2e9)
            # The first one may have had to wait for a compilation.
            points.append((pages * page, min(taken[1:])))
            self.on_point()
        return Curve.fit([(0, 0.0), *points])

    def _seconds(self, make: Callable[[int], Plan]) -> float:
        """Return the median time from one iteration's end to the next, with the next one always queued.

        Args:
            make: returns the plan of a turn, counted from 0; all must have the same pages.
        """
        ends: list[float] = []
        before: Submitted | None = None
        turn = 0
        while len(ends) < 2 + FEWEST or (len(ends) < MOST and ends[-1] - ends[0] < POINT_SECONDS):
            plan = make(turn)
            # Pages are given once; later iterations of a real run receive few.
            submitted = self.executor.submit(plan if turn == 0 else replace(plan, new_pages=(), new_host_pages=()))
            if before is not None:
                self.executor.fetch(before)
                ends.append(self.clock())
            before, turn = submitted, turn + 1
        if before is not None:
            self.executor.fetch(before)
        self.on_point()
        # The first one may have had to wait for a compilation.
        return statistics.median(later - earlier for earlier, later in pairwise(ends[1:]))
