"""Requests in the middle of a long run: those on the device come and go, those on the host stay."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..engine.engine import Engine
from ..engine.output_processor import OutputStream
from ..engine.request_group import Generation
from ..execution.emulated_device import EmulatedDevice, decode_load
from ..execution.executor import Executor
from ..host_offload import HostWorker
from ..machine.foreign_load import ForeignLoad
from ..sampling_params import SamplingParams
from ..scheduler import Decision, Situation, Terms
from ..scheduler.cost_model.component_times import Costs
from ..scheduler.strategies import DEVICE_ONLY

OUTPUT = 64
"""Output tokens of a device request, whose context grows from half of that below the mean to half of it above."""

SPARE = 4
"""Requests that wait, so that whoever ends is replaced at once and nobody is fetched back from the host."""

STEPS_EACH = 8
"""Iterations in which a request has long come to the host, if there is room for it."""

NO_TIME = Terms()
"""Factors of a device on which nothing takes time."""

REST = Decision(strategy=DEVICE_ONLY.name)


@dataclass(kw_only=True)
class Seen:
    """Sums over the situations that a policy was asked about."""

    plans: int = 0
    device_rows: int = 0
    device_kv_tokens: int = 0
    host_rows: int = 0
    host_kv_tokens: int = 0
    mid_token_rows: int = 0


class Told:
    """A policy that does as it is told, and counts what it sees.

    Attributes:
        decision: the next plans'.
        seen: since it was last replaced.
    """

    def __init__(self) -> None:
        self.decision = REST
        self.seen = Seen()

    def decide(self, situation: Situation) -> Decision:
        """Return `decision`."""
        seen = self.seen
        seen.plans += 1
        seen.device_rows += situation.device_rows
        seen.device_kv_tokens += situation.device_kv_tokens
        seen.host_rows += situation.host_rows
        seen.host_kv_tokens += situation.host_kv_tokens
        seen.mid_token_rows += situation.mid_token_rows
        return self.decision


class TimedStream(OutputStream):
    """Notes the times between tokens.

    Attributes:
        gaps_ns: of the tokens that came since it was last emptied.
    """

    def __init__(self, max_tokens: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        super().__init__(params, None, eos_token_ids=())
        self.gaps_ns: list[int] = []
        self._last_ns = 0

    def push(self, token_ids: Iterable[int]) -> str:
        """Take tokens in, one at a time."""
        now = time.perf_counter_ns()
        if self._last_ns:
            self.gaps_ns.append(now - self._last_ns)
        self._last_ns = now
        return super().push(token_ids)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A request, and where its tokens go."""

    generation: Generation
    stream: TimedStream

    @property
    def on_host(self) -> bool:
        return self.generation.request.side == "host"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What happened between two iterations.

    Attributes:
        seconds: between them.
        device_tokens, host_tokens: that came.
        device_busy, host_busy: shares of the time.
        job_seconds: mean time of the attention of one layer on the host; 0 if there was none.
        others_busy: share of all cores' time that other processes took; None where nothing tells it.
        device_gaps_ns, host_gaps_ns: times between two tokens of a request.
        seen: situations.
    """

    seconds: float
    device_tokens: int
    host_tokens: int
    device_busy: float
    host_busy: float
    job_seconds: float
    others_busy: float | None
    device_gaps_ns: list[int]
    host_gaps_ns: list[int]
    seen: Seen

    @property
    def tokens_per_s(self) -> float:
        return (self.device_tokens + self.host_tokens) / self.seconds

    @property
    def iteration_s(self) -> float:
        return self.seconds / self.seen.plans

    @property
    def device_rows(self) -> float:
        return self.seen.device_rows / self.seen.plans

    @property
    def device_context(self) -> float:
        return self.seen.device_kv_tokens / max(1, self.seen.device_rows)

    @property
    def host_context(self) -> float:
        return self.seen.host_kv_tokens / max(1, self.seen.host_rows)


@dataclass(kw_only=True)
class SteadyLoad:
    """An engine over an emulated device, and its requests.

    Attributes:
        device, worker: what the engine runs on.
        context: mean context of the requests.
    """

    device: EmulatedDevice
    worker: HostWorker
    context: int
    policy: Told = field(default_factory=Told)
    engine: Engine = field(init=False)
    _on_host: list[Member] = field(default_factory=list)
    _on_device: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = Engine(Executor(self.device, self.worker), self.policy)

    def fill(self, host_requests: int, *, context: int) -> None:
        """Replace all requests: so many live on the host, with contexts of that length, and the device is full.

        Everybody is computed on the device and moves from there, as always, but the device takes no time for it.
        """
        self.clear()
        costs = self.device.costs
        self.device.costs, self.device.load_of = Costs(costs.profile, NO_TIME), decode_load
        try:
            self._settle(host_requests, context)
        finally:
            self.device.costs = costs

    def _settle(self, host_requests: int, context: int) -> None:
        self.policy.decision = Decision(strategy=DEVICE_ONLY.name, max_host_requests=host_requests)
        longest = self.device.buckets.table_width * self.device.buckets.page_size
        rows = self.device.buckets.capacity.device_pages // (context // self.device.buckets.page_size + 1)
        newcomers = [self._add(context, longest - context) for _ in range(host_requests + rows if host_requests else 0)]
        for _ in range(1 + STEPS_EACH * len(newcomers)):
            if sum(member.on_host for member in newcomers) >= host_requests:
                break
            self.engine.step()
        else:
            raise ValueError(f"{host_requests} requests of {context} tokens do not come to rest on the host")
        self._on_host = [member for member in newcomers if member.on_host]
        for index in range(rows + SPARE):
            output = OUTPUT * (index % rows + 1) // rows if index < rows else OUTPUT
            self._on_device.append(self._add(self.context + OUTPUT // 2 - output, output))
        for member in newcomers:
            if not member.on_host:
                self.engine.abort(member.generation)
        # Whatever moves has moved before anything is measured.
        self.worker.stop()

    def run(self, decision: Decision, iterations: int) -> None:
        """Go on with a decision."""
        self.policy.decision = Decision(
            strategy=decision.strategy, lanes=decision.lanes, max_host_requests=len(self._on_host)
        )
        for _ in range(iterations):
            self.step()

    def measure(self, seconds: float, *, multiple: int = 1, least_jobs: int = 0) -> Interval:
        """Run for at least that time, a plan and so many jobs of the host, and a multiple of so many iterations."""
        self.policy.seen = seen = Seen()
        for member in (*self._on_host, *self._on_device):
            member.stream.gaps_ns.clear()
        host, before = self.engine.executor.host, self.engine.stats()
        began, device_ns, host_ns = time.perf_counter_ns(), self.device.busy_ns, host.busy_ns
        jobs, attend_ns, others = host.jobs, host.attend_ns, ForeignLoad()
        ended: list[Member] = []
        iterations = 0
        while (
            time.perf_counter_ns() - began < seconds * 1e9
            or iterations % multiple
            or not seen.plans
            or host.jobs - jobs < least_jobs
        ):
            ended += self.step()
            iterations += 1
        took, others_busy, after = time.perf_counter_ns() - began, others.share(), self.engine.stats()
        # What comes after the interval must not be counted in it.
        self.policy.seen = Seen()
        gaps = {
            side: [gap for member in group for gap in member.stream.gaps_ns]
            for side, group in (("device", self._on_device + ended), ("host", self._on_host))
        }
        return Interval(
            seconds=took / 1e9,
            device_tokens=after.device_tokens - before.device_tokens,
            host_tokens=after.host_tokens - before.host_tokens,
            device_busy=(self.device.busy_ns - device_ns) / took,
            host_busy=(host.busy_ns - host_ns) / took,
            job_seconds=(host.attend_ns - attend_ns) / max(1, host.jobs - jobs) / 1e9,
            others_busy=others_busy,
            device_gaps_ns=gaps["device"],
            host_gaps_ns=gaps["host"],
            seen=seen,
        )

    def clear(self) -> None:
        """Drop all requests."""
        for member in (*self._on_host, *self._on_device):
            self.engine.abort(member.generation)
        self._on_host, self._on_device = [], []

    def step(self) -> list[Member]:
        """Run an iteration, and replace the device requests that it ended; returns those."""
        self.engine.step()
        ended = [member for member in self._on_device if member.generation.finished]
        if ended:
            self._on_device = [member for member in self._on_device if not member.generation.finished]
            self._on_device += [self._add(self.context - OUTPUT // 2, OUTPUT) for _ in ended]
        return ended

    def _add(self, prompt: int, output: int) -> Member:
        stream = TimedStream(output)
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        generation = self.engine.prepare((1,) * prompt, params, stream, seed=0, index=0)
        self.engine.add(generation)
        return Member(generation=generation, stream=stream)
