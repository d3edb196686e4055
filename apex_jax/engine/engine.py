"""The engine loop: schedule, submit, and take in results one iteration late.

Plan i+1 is made and dispatched before the tokens of plan i are read, so the device always has its next iteration
queued while Python works. A request that turns out to have ended at plan i has by then one row too many in plan i+1;
that row's token is dropped. Where a row of plan i+1 depends on what the host makes of the tokens of plan i (a grammar,
say), the model's part of plan i+1 is dispatched all the same, and its sampling once those tokens have been taken in.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..execution.executor import Executor, Submitted
from ..execution.logit_edits import RowEdits
from ..execution.sampler import seed_words
from ..sampling_params import SamplingParams
from ..scheduler import Follower, Measured, Plan, Policy, Request, Scheduler, Side
from ..tracing.recorder import Recorder
from .output_processor import OutputStream
from .request_group import Generation
from .restrictions import Restricted
from .stats import Counters, EngineStats, engine_stats

_logger = logging.getLogger(__name__)


class Engine:
    """Runs requests to their ends on an executor.

    Args:
        executor: runs plans.
        policy: chooses the strategy of each plan; device_only if None.
        follower: is told what each plan took; None for nobody.
    """

    def __init__(self, executor: Executor, policy: Policy | None = None, follower: Follower | None = None) -> None:
        self.executor = executor
        self.policy = policy
        self.follower = follower
        self._counters = Counters()
        self._next_id = 0
        self._torn = False
        self._last_end = 0
        self._start_empty()

    def _start_empty(self) -> None:
        capacity, layers = self.executor.buckets.capacity, self.executor.device.num_layers
        self.scheduler = Scheduler(capacity, num_layers=layers, policy=self.policy)
        self._generations: dict[int, Generation] = {}
        self._restricted: set[int] = set()
        self._pending: deque[Submitted] = deque()
        self._host_seen_ns = self.executor.host.busy_ns
        if self.follower is not None:
            self.follower.forget()

    def prepare(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        stream: OutputStream,
        *,
        seed: int,
        index: int,
        restricted: Restricted | None = None,
    ) -> Generation:
        """Return a completion for `add` to queue; the caller can note it first, so that no interrupt loses it.

        Args:
            prompt: token ids.
            params: how to sample.
            stream: takes the tokens and decides where they end.
            seed: of the user's request; `index` tells its completions apart.
            restricted: what it changes of the model's logits, if anything.
        """
        request = Request(id=self._next_id, prompt=tuple(prompt), max_tokens=stream.max_tokens)
        self._next_id += 1
        return Generation(
            request=request,
            index=index,
            params=params,
            seed=seed_words(seed, index),
            stream=stream,
            arrival=time.monotonic(),
            restricted=restricted,
        )

    def add(self, generation: Generation) -> None:
        """Queue a completion.

        Raises:
            ValueError: the device KV cache can never hold the request.
        """
        self.scheduler.check(generation.request)
        with self._changing():
            if not self._generations:
                # What is still under way belongs to nobody; its failure must not reach this request.
                self._pending.clear()
            self.scheduler.add(generation.request)
            self._generations[generation.request.id] = generation
            if generation.restricted is not None:
                self._restricted.add(generation.request.id)

    @property
    def has_unfinished(self) -> bool:
        self._recover()
        return bool(self._generations)

    def step(self) -> None:
        """Run one iteration: submit the next plan, then take in the results of the one before it.

        Raises:
            BaseException: whatever the device raised, or an interrupt. All requests have been aborted then and carry
                the exception; the engine is empty and usable.
        """
        with self._changing():
            arrived = self.executor.arrived()
            self._end_failed()
            for request_id in arrived:
                if not self.scheduler.fetch_arrived(request_id):
                    self.executor.forget(request_id)
            plan = self._schedule()
            if plan is not None:
                self._submit(plan)
            if self._pending and (plan is None or len(self._pending) > 1):
                self._receive(self._pending.popleft())
            elif plan is None and self.scheduler.is_fetching:
                self.executor.wait_for_fetch()
            elif plan is None and self._generations:
                raise RuntimeError(f"{len(self._generations)} requests are unfinished, but none can be scheduled")
            self._rest_if_done()

    def abort(self, generation: Generation, reason: str | None = None) -> None:
        """End a completion now; what it holds is free for others. One that has ended already is left as it is."""
        with self._changing():
            if self._generations.pop(generation.request.id, None) is not None:
                self.scheduler.finish(generation.request.id)
            generation.abort(reason, time.monotonic())
            self._rest_if_done()

    def close(self) -> None:
        """Abort all completions and leave no thread behind."""
        for generation in list(self._generations.values()):
            self.abort(generation, "closed")
        self.executor.rest()

    def _rest_if_done(self) -> None:
        """Leave no thread behind when the last request has ended; what is still under way belongs to nobody."""
        if not self._generations:
            self.executor.rest()
            if self.follower is not None:
                self.follower.forget()

    def decide_by(self, policy: Policy, follower: Follower | None = None) -> None:
        """Let another policy choose from now on; no request may be under way."""
        with self._changing():
            self.policy = policy
            self.follower = follower
            self._counters = self._counters.plus_moves(self.scheduler)
            self._start_empty()

    def warm_up(self) -> None:
        """Compile every program that requests can need; changes none of those under way."""
        with self._changing():
            self.executor.warm_up()

    @property
    def recorder(self) -> Recorder | None:
        """What records now, if anything does."""
        return self.executor.recorder

    def record(self, recorder: Recorder | None) -> None:
        """Record what device, host and Python do from now on; with None, end that and complete what is recorded."""
        self.executor.record(recorder)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Empty the engine if a change of its state is cut short, for then nothing that it holds can be trusted.

        An interrupt may come between any two instructions, in `_abandon` too: then the next change empties it.
        """
        self._recover()
        self._torn = True
        try:
            yield
        except BaseException as error:
            self._abandon(error)
            raise
        self._torn = False

    def _recover(self) -> None:
        if self._torn:
            self._abandon(RuntimeError("the engine was interrupted while this request was under way"))

    def _abandon(self, error: BaseException) -> None:
        """Drop all requests and start empty, after an exception that left unknown what has been submitted."""
        reason = f"{type(error).__name__}: {error}"
        for generation in self._generations.values():
            generation.engine_error = error
            generation.abort(reason, time.monotonic())
        self._counters = self._counters.plus_moves(self.scheduler)
        self._start_empty()
        self.executor.reset()
        self._torn = False

    def stats(self) -> EngineStats:
        """Return counts since the engine was made."""
        self._recover()
        return engine_stats(self._counters.plus_moves(self.scheduler), self.scheduler, self.executor.host)

    def _schedule(self) -> Plan | None:
        begin = time.perf_counter_ns()
        plan = self.scheduler.schedule()
        if self.recorder is not None and plan is not None:
            self.recorder.span("python", "plan", begin, time.perf_counter_ns(), iteration=plan.number)
        return plan

    def _submit(self, plan: Plan) -> None:
        now = time.monotonic()
        for chunk in plan.prefill:
            if chunk.start == 0:
                generation = self._generations[chunk.request_id]
                generation.started = generation.started or now
                request = generation.request
                tokens = (*request.prompt, *request.output)
                self.executor.assign_slot(chunk.slot, generation.params, generation.seed, tokens)
        if self.follower is not None:
            self.follower.expect(plan)
        self._pending.append(self._dispatch(plan))
        self._counters.iterations += 1
        self._counters.prompt_tokens += plan.prefill_tokens

    def _dispatch(self, plan: Plan) -> Submitted:
        if self._restricted:
            self._restricted &= self._generations.keys()
        if not self._restricted or self._restricted.isdisjoint(plan.sampling_requests):
            return self.executor.submit(plan)
        dispatching = self.executor.dispatch_model(plan)
        while self._pending:
            self._receive(self._pending.popleft())
        return self.executor.dispatch_sampling(dispatching, [self._edits(each) for each in plan.sampling_requests])

    def _edits(self, request_id: int) -> RowEdits | None:
        generation = self._generations.get(request_id)
        if generation is None:
            return None
        edits = generation.edits(time.monotonic())
        if generation.finished:
            del self._generations[request_id]
            self.scheduler.finish(request_id)
        return edits

    def _receive(self, submitted: Submitted) -> None:
        sampled = self.executor.fetch(submitted)
        self._account(submitted)
        plan, now = submitted.plan, time.monotonic()
        arrived = self.scheduler.update(plan, sampled.tokens.tolist())
        hosted = sum(row is not None for cohort in plan.arriving for row in cohort.rows)
        self._counters.host_tokens += hosted
        on_device = len(plan.sampling_requests) - hosted
        self._counters.device_tokens += on_device
        self._end_failed()
        for request, row in arrived:
            generation = self._generations.get(request.id)
            if generation is None:
                continue
            side: Side = "device" if row < on_device else "host"
            generation.push(sampled, row, now, side)
            self._counters.output_tokens += int(sampled.tokens[row]) >= 0
            if generation.finished:
                del self._generations[request.id]
                self.scheduler.finish(request.id)

    def _account(self, submitted: Submitted) -> None:
        end, host = time.perf_counter_ns(), self.executor.host.busy_ns
        took = end - max(submitted.began_ns, self._last_end)
        if not submitted.compiled:
            self._counters.busy_ns += took
            self._counters.wait_ns += submitted.wait_ns
            self._counters.host_busy_ns += host - self._host_seen_ns
        if self.follower is not None:
            # An iteration that follows a pause has nothing of the one before it to overlap with.
            steady = self._last_end >= submitted.began_ns and not submitted.compiled
            measured = Measured(iteration_s=took / 1e9, host_busy_s=(host - self._host_seen_ns) / 1e9)
            self.follower.compare(submitted.plan, measured if steady and took > 0 else None)
        self._last_end, self._host_seen_ns = end, host

    def _end_failed(self) -> None:
        """End the requests that the host has failed."""
        found, now = self.executor.take_failures(), time.monotonic()
        failures = dict(found.requests)
        if found.host_lost is not None:
            for request_id, generation in self._generations.items():
                if generation.request.side == "host":
                    failures.setdefault(request_id, found.host_lost)
        ended: list[BaseException] = []
        for request_id, error in failures.items():
            generation = self._generations.pop(request_id, None)
            if generation is not None:
                self.scheduler.finish(request_id)
                generation.host_error = error
                generation.abort(f"{type(error).__name__}: {error}", now)
                ended.append(error)
        # Once for each error; results have its message alone, the log has where it came from.
        for error in {id(error): error for error in ended}.values():
            count = sum(other is error for other in ended)
            _logger.warning("A host job failed and ended %d request(s): %r", count, error, exc_info=error)
