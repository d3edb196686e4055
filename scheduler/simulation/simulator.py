"""Virtual time: what a policy makes of a workload on a machine that a profile describes.

The rules are the scheduler's (see `admission`), the times are the cost model's for iterations that repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..capacity import Capacity
from ..cost_model.cost_model import CostModel
from ..policy import Policy
from ..strategies.steady import steady
from .metrics import Measures, Simulated
from .request_pool import SimRequest
from .virtual_engine import VirtualEngine
from .workload import Job


def simulate(
    jobs: Sequence[Job],
    capacity: Capacity,
    model: CostModel,
    policy: Policy,
    *,
    prefill_alone: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Simulated:
    """Return what serving all jobs takes.

    Args:
        jobs: the requests, in any order.
        capacity: the memory and the requests that it is for.
        model: what iterations take.
        policy: what is asked how to build plans.
        prefill_alone: prompts are computed in iterations of their own, while decoding requests rest.
        progress: told how many more requests have ended.

    Raises:
        ValueError: there are no jobs, or one can never fit on the device.
    """
    if not jobs:
        raise ValueError("there are no requests to simulate")
    for job in jobs:
        if not capacity.holds(job.total - 1):
            raise ValueError(
                f"a request of {job.prompt} prompt and {job.output} output tokens exceeds the device KV of "
                f"{capacity.longest} tokens, in which prompts are computed, after a preemption with their output"
            )
    engine = VirtualEngine(capacity, model.profile.num_layers, prefill_alone=prefill_alone)
    return _Simulation(jobs, engine, model, policy, progress or (lambda ended: None)).run()


class _Simulation:
    def __init__(
        self,
        jobs: Sequence[Job],
        engine: VirtualEngine,
        model: CostModel,
        policy: Policy,
        progress: Callable[[int], object],
    ) -> None:
        self.model = model
        self.policy = policy
        self.progress = progress
        ordered = enumerate(sorted(jobs, key=lambda job: job.arrival_s))
        self.coming = [
            SimRequest(id=i, arrival_s=job.arrival_s, prompt=job.prompt, output=job.output) for i, job in ordered
        ][::-1]
        self.unfinished = len(jobs)
        self.engine = engine
        self.measures = Measures()

    def run(self) -> Simulated:
        engine, scheduler = self.engine, self.engine.scheduler
        while self.unfinished:
            if scheduler.is_empty:
                engine.now = max(engine.now, self.coming[-1].arrival_s)
            while self.coming and self.coming[-1].arrival_s <= engine.now:
                scheduler.wait(self.coming.pop())
            self._iterate()
        return self.measures.result(
            engine.now, evictions=scheduler.evictions, fetches=scheduler.fetches, preemptions=scheduler.preemptions
        )

    def _iterate(self) -> None:
        engine, scheduler = self.engine, self.engine.scheduler
        step = engine.begin(self.policy.decide(engine.situation()))
        turn, load, count = step.turn, step.load, step.iterations
        prediction = steady(self.model.costs, turn.strategy, load, turn.lanes, step.row_tokens)
        seconds = prediction.iteration_s
        if scheduler.moved_tokens:
            # Copies and attention are the host worker's, one after the other.
            seconds = max(seconds, prediction.host.total + self.model.costs.migration(scheduler.moved_tokens))
        if count > 1 and self.coming:
            count = max(1, min(count, math.ceil((self.coming[-1].arrival_s - engine.now) / seconds)))
        self.measures.iterations(
            prediction,
            seconds=seconds,
            steps=count,
            device_rows=load.device_rows,
            host_rows=scheduler.host.rows,
            host_tokens=turn.pace,
        )
        for request in scheduler.completed:
            self.measures.first_token(request, engine.now + seconds * count)
        ended = engine.end(step, seconds, count)
        for request in ended:
            self.measures.ended(request)
        self.unfinished -= len(ended)
        if ended:
            self.progress(len(ended))
