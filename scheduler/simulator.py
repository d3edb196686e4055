"""Virtual time: what a policy makes of a workload on a machine that a profile describes.

The rules are the scheduler's (see `tiers`), the times are the cost model's for iterations that repeat. Requests on a
side are held in sums (see `population`), and iterations between two events are taken in one step, at the context
lengths of their middle. Host rows of staggered cohorts advance by the fraction of a token that an iteration is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .cost_model import CostModel
from .measures import Measures, Simulated
from .plan import Strategy
from .policy import Policy, Situation
from .population import SimRequest
from .prediction import Load
from .tiers import Machine, Tiers
from .workload import Job

LONGEST_STEP = 64
"""Iterations taken in one step at most: contexts grow by no more before the policy is asked again."""


def simulate(
    jobs: Sequence[Job],
    machine: Machine,
    model: CostModel,
    policy: Policy,
    *,
    progress: Callable[[int], object] | None = None,
) -> Simulated:
    """Return what serving all jobs takes.

    Args:
        jobs: the requests, in any order.
        machine: the memory there is.
        model: what iterations take.
        policy: what is asked how to build plans.
        progress: told how many more requests have ended.

    Raises:
        ValueError: there are no jobs, or one can never fit on the device.
    """
    if not jobs:
        raise ValueError("there are no requests to simulate")
    capacity = machine.device_kv_tokens // machine.page_size * machine.page_size
    for job in jobs:
        if job.total > capacity + 1:
            raise ValueError(
                f"a request of {job.prompt} prompt and {job.output} output tokens exceeds the device KV of {capacity} "
                "tokens, in which prompts are computed, after a preemption with their output"
            )
    return _Simulation(jobs, machine, model, policy, progress or (lambda ended: None)).run()


class Turn(NamedTuple):
    """How host rows take part in an iteration.

    Attributes:
        strategy: what prices it.
        lanes: rows of each cohort under way.
        pace: tokens that each host request makes on average.
    """

    strategy: Strategy
    lanes: tuple[int, ...] = ()
    pace: float = 0.0


def host_turn(strategy: Strategy, lanes: Sequence[int], rows: int, num_layers: int, *, device: bool) -> Turn:
    """Return how `rows` host requests advance under a decision.

    Cohorts of async_overlap depart ceil((L + 1) / K) iterations apart, so that with K lanes not always K of them are
    under way. Without anything on the device they need not wait for a later iteration, and go through in halves.
    """
    if not rows:
        return Turn("device_only")
    if not lanes:
        return Turn("device_only") if device else Turn("layer_sync", (rows,), 1.0)
    riding = min(rows, sum(lanes))
    if strategy == "async_overlap" and device:
        tokens = num_layers + 1
        spacing = math.ceil(tokens / len(lanes))
        riding = min(riding, int(sum(lanes) / len(lanes) * tokens / spacing))
        return Turn(strategy, _even(riding, tokens // spacing), riding / rows / tokens)
    if strategy == "async_overlap":
        return Turn("asymmetric_pipelining", _even(riding, 2), riding / rows)
    filled = []
    for size in lanes:
        filled.append(min(size, riding - sum(filled)))
    return Turn(strategy, tuple(size for size in filled if size), riding / rows)


class _Simulation:
    def __init__(
        self,
        jobs: Sequence[Job],
        machine: Machine,
        model: CostModel,
        policy: Policy,
        progress: Callable[[int], object],
    ) -> None:
        self.machine = machine
        self.model = model
        self.policy = policy
        self.progress = progress
        ordered = enumerate(sorted(jobs, key=lambda job: job.arrival_s))
        self.coming = [
            SimRequest(id=i, arrival_s=job.arrival_s, prompt=job.prompt, output=job.output) for i, job in ordered
        ][::-1]
        self.now = 0.0
        self.unfinished = len(jobs)
        self.tiers = Tiers(machine)
        self.measures = Measures()
        self.layers = model.profile.num_layers
        self.last_pace = 1.0
        self.undecided = 0

    def run(self) -> Simulated:
        tiers = self.tiers
        while self.unfinished:
            if tiers.is_empty:
                self.now = max(self.now, self.coming[-1].arrival_s)
            while self.coming and self.coming[-1].arrival_s <= self.now:
                tiers.wait(self.coming.pop())
            self._iterate()
        return self.measures.result(
            self.now, evictions=tiers.evictions, fetches=tiers.fetches, preemptions=tiers.preemptions
        )

    def _iterate(self) -> None:
        tiers = self.tiers
        decision = self.policy.decide(self._situation())
        tiers.schedule(decision)
        decoding = tiers.decoding
        busy = bool(decoding or tiers.prefill_tokens)
        turn = host_turn(decision.strategy, decision.lanes, tiers.host.rows, self.layers, device=busy)
        steps = self._steps(decoding, turn.pace)
        middle = (steps - 1) / 2
        load = Load(
            device_rows=decoding,
            device_kv_tokens=tiers.device.kv_tokens + decoding * middle if decoding else 0,
            prefill_tokens=tiers.prefill_tokens,
            prefill_pairs=tiers.prefill_pairs,
            prompt_samples=len(tiers.completed),
        )
        length = tiers.host.kv_tokens / tiers.host.rows + turn.pace * middle if turn.lanes else 0.0
        prediction = self.model.steady(turn.strategy, load, turn.lanes, length)
        seconds = prediction.iteration_s
        if tiers.moved_tokens:
            # Copies and attention are the host worker's, one after the other.
            seconds = max(seconds, prediction.host.total + self.model.costs.migration(tiers.moved_tokens))
        if steps > 1 and self.coming:
            steps = max(1, min(steps, math.ceil((self.coming[-1].arrival_s - self.now) / seconds)))
        self.measures.iterations(
            prediction,
            seconds=seconds,
            steps=steps,
            device_rows=decoding,
            host_rows=tiers.host.rows,
            host_tokens=turn.pace,
        )
        self.now += seconds * steps
        self.last_pace, self.undecided = turn.pace, steps - 1
        for request in tiers.completed:
            self.measures.first_token(request, self.now)
        ended = tiers.advance(decoding=decoding, host_tokens=turn.pace, steps=steps)
        for request in ended:
            self.measures.ended(request)
        self.unfinished -= len(ended)
        if ended:
            self.progress(len(ended))

    def _steps(self, decoding: int, pace: float) -> int:
        """Return for how many iterations nobody comes, goes or needs a page that is not free."""
        tiers = self.tiers
        if tiers.prefill_tokens or tiers.prefilling or tiers.landing or tiers.moved_tokens:
            return 1
        steps = LONGEST_STEP
        if decoding:
            steps = min(steps, int(tiers.device.next_end - tiers.device.clock))
            steps = min(steps, tiers.device.growth_within(steps, tiers.free))
        if pace:
            host = tiers.host
            steps = min(steps, math.ceil((host.next_end - host.clock) / pace - 1e-6))
            steps = min(steps, int(max(0.0, self.machine.host_kv_tokens - host.kv_tokens) / (host.rows * pace)))
        return max(1, steps)

    def _situation(self) -> Situation:
        tiers = self.tiers
        device, host = tiers.device, tiers.host
        return Situation(
            num_layers=self.layers,
            device_rows=device.rows + len(tiers.landing),
            device_kv_tokens=int(device.kv_tokens),
            host_rows=host.rows,
            host_kv_tokens=int(host.kv_tokens),
            prefill_tokens=tiers.likely_prefill,
            prefill_context=tiers.prefilling[0].computed if tiers.prefilling else 0,
            waiting=len(tiers.waiting),
            waiting_tokens=tiers.waiting_tokens,
            waiting_output=tiers.waiting_output,
            remaining_tokens=int(device.remaining + host.remaining),
            host_remaining_tokens=int(host.remaining),
            free_device_tokens=tiers.free * self.machine.page_size,
            free_host_tokens=max(0, int(self.machine.host_kv_tokens - host.kv_tokens)),
            oldest_host_wait=int(1 / self.last_pace) if self.last_pace and host.rows else 0,
            undecided=self.undecided,
            roster=tiers.roster,
        )


def _even(rows: int, count: int) -> tuple[int, ...]:
    """Spread rows evenly over at most `count` lanes."""
    least, more = divmod(rows, count)
    return tuple(size for size in (least + 1,) * more + (least,) * (count - more) if size)
