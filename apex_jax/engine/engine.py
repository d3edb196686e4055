"""The engine loop: schedule, submit, and take in results one iteration late.

Plan i+1 is made and dispatched before the tokens of plan i are read, so the device always has its next iteration
queued while Python works. A request that turns out to have ended at plan i has by then one row too many in plan i+1;
that row's token is dropped.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from ..execution.executor import Executor, Submitted
from ..execution.sampler import Sampled, seed_words
from ..outputs import Logprob
from ..sampling_params import SamplingParams
from ..scheduler import Follower, Measured, PageTable, Plan, Policy, Request, Scheduler, Side
from .output_processor import OutputStream

_logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Pace:
    """Tokens that a completion got from one side, and the times since the tokens before them, first tokens left out."""

    tokens: int = 0
    gaps: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True, eq=False)
class Generation:
    """One completion under way: what the scheduler counts, what the sampler needs, what the user will see.

    Attributes:
        host_error: what the host could not do for this one, if that ended it.
        engine_error: what emptied the engine of all requests, if that ended it.
    """

    request: Request
    index: int
    params: SamplingParams
    seed: np.ndarray
    stream: OutputStream
    arrival: float
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    pace: dict[Side, Pace] = field(default_factory=lambda: {"device": Pace(), "host": Pace()})
    host_error: BaseException | None = None
    engine_error: BaseException | None = None
    _news: list[str] = field(default_factory=list)
    _tokens_told: int = 0
    _end_told: bool = False

    @property
    def finished(self) -> bool:
        return self.stream.finished

    @property
    def has_news(self) -> bool:
        """Whether tokens, text or the end have come since `take_news` was last called."""
        unheard = len(self.stream.token_ids) > self._tokens_told or bool(self._news)
        return unheard or (self.finished and not self._end_told)

    def take_news(self) -> tuple[str, int]:
        """Return the text that came since the last call, and the index of the first token that did."""
        text, first = "".join(self._news), self._tokens_told
        self._news.clear()
        self._tokens_told = len(self.stream.token_ids)
        self._end_told = self.finished
        return text, first

    def push(self, token: int, now: float, side: Side) -> None:
        """Take in a token that has arrived after attention on that side."""
        before = len(self.stream.token_ids)
        text = self.stream.push((token,))
        if len(self.stream.token_ids) > before:
            if self.last_token is None:
                self.first_token = now
            else:
                self.pace[side].gaps += 1
                self.pace[side].seconds += now - self.last_token
            self.pace[side].tokens += 1
            self.last_token = now
        self._hear(text, now)

    def abort(self, reason: str | None, now: float) -> None:
        """End from outside, unless it has ended."""
        self._hear(self.stream.abort(reason), now)

    def _hear(self, text: str, now: float) -> None:
        if text:
            self._news.append(text)
        if self.finished and self.ended is None:
            self.ended = now


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine has done since it was made.

    Attributes:
        iterations: plans run.
        prompt_tokens: prompt tokens computed, those of preempted requests again each time.
        output_tokens: tokens that belong to results.
        device_tokens, host_tokens: output tokens sampled after attention on the device and on the host; more than
            `output_tokens` by those computed for requests that turned out to have ended.
        preemptions: times a request lost its pages and was computed again.
        evictions, landings: times a request's KV moved to the host, and back.
        busy_seconds: from submitting plans to their results; idle times between requests and iterations that compiled
            programs left out.
        device_utilisation: share of `busy_seconds` that is not in `wait_seconds`; at most that much of it was work, for
            the device is also idle where Python comes late, and waits count as far as they are known.
        host_utilisation: share of `busy_seconds` in which the host attended or moved pages.
        wait_seconds: time in which the device had nothing to do until a result of the host came. Exact on an emulated
            device. JAX tells whether a device works, but not since when it does not: there a wait counts from the first
            look that found nothing left to do, as Python began to wait or as the host's job had its input, and the true
            time is at least this. While a trace is recorded it counts from when the device was seen to end.
        host_seconds, move_seconds: the host's time for attention, and for pages that moved.
        running, waiting, on_host: requests now; `on_host` of the running ones have their KV there.
        free_pages, num_pages: pages of the device KV cache.
        free_host_pages, num_host_pages: pages of the host KV cache.
    """

    iterations: int
    prompt_tokens: int
    output_tokens: int
    device_tokens: int
    host_tokens: int
    preemptions: int
    evictions: int
    landings: int
    busy_seconds: float
    device_utilisation: float | None
    host_utilisation: float | None
    wait_seconds: float
    host_seconds: float
    move_seconds: float
    running: int
    waiting: int
    on_host: int
    free_pages: int
    num_pages: int
    free_host_pages: int
    num_host_pages: int


@dataclass(kw_only=True)
class _Counters:
    """Sums over the life of an engine; times in nanoseconds."""

    iterations: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    device_tokens: int = 0
    host_tokens: int = 0
    preemptions: int = 0
    evictions: int = 0
    landings: int = 0
    busy_ns: int = 0
    wait_ns: int = 0
    host_busy_ns: int = 0


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
        self._counters = _Counters()
        self._next_id = 0
        self._torn = False
        self._last_end = 0
        self._start_empty()

    def _start_empty(self) -> None:
        buckets, worker = self.executor.buckets, self.executor.worker
        self._scheduler = Scheduler(
            PageTable(self.executor.device.num_pages, buckets.page_size),
            num_layers=self.executor.device.num_layers,
            max_num_seqs=buckets.max_num_seqs,
            max_prefill_tokens=buckets.max_prefill_pages * buckets.page_size,
            host_pages=PageTable(worker.num_pages, buckets.page_size) if worker else None,
            max_host_seqs=buckets.max_host_seqs,
            policy=self.policy,
        )
        self._generations: dict[int, Generation] = {}
        self._pending: deque[Submitted] = deque()
        self._host_seen_ns = self.executor.host.busy_ns
        if self.follower is not None:
            self.follower.forget()

    def prepare(
        self, prompt: Sequence[int], params: SamplingParams, stream: OutputStream, *, seed: int, index: int
    ) -> Generation:
        """Return a completion for `add` to queue; the caller can note it first, so that no interrupt loses it.

        Args:
            prompt: token ids.
            params: how to sample.
            stream: takes the tokens and decides where they end.
            seed: of the user's request; `index` tells its completions apart.
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
        )

    def add(self, generation: Generation) -> None:
        """Queue a completion.

        Raises:
            ValueError: the device KV cache can never hold the request.
        """
        self._scheduler.check(generation.request)
        with self._changing():
            if not self._generations:
                # What is still under way belongs to nobody; its failure must not reach this request.
                self._pending.clear()
            self._scheduler.add(generation.request)
            self._generations[generation.request.id] = generation

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
                if not self._scheduler.fetch_arrived(request_id):
                    self.executor.forget(request_id)
            plan = self._schedule()
            if plan is not None:
                self._submit(plan)
            if self._pending and (plan is None or len(self._pending) > 1):
                self._receive(self._pending.popleft())
            elif plan is None and self._scheduler.is_fetching:
                self.executor.wait_for_fetch()
            elif plan is None and self._generations:
                raise RuntimeError(f"{len(self._generations)} requests are unfinished, but none can be scheduled")
            self._rest_if_done()

    def abort(self, generation: Generation, reason: str | None = None) -> None:
        """End a completion now; what it holds is free for others. One that has ended already is left as it is."""
        with self._changing():
            if self._generations.pop(generation.request.id, None) is not None:
                self._scheduler.finish(generation.request.id)
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
            self._counters = self._totals()
            self._start_empty()

    def warm_up(self) -> None:
        """Compile every program that requests can need; changes none of those under way."""
        with self._changing():
            self.executor.warm_up()

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
        self._counters = self._totals()
        self._start_empty()
        self.executor.reset()
        self._torn = False

    def _totals(self) -> _Counters:
        past, now = self._counters, self._scheduler
        return replace(
            past,
            preemptions=past.preemptions + now.preemptions,
            evictions=past.evictions + now.evictions,
            landings=past.landings + now.landings,
        )

    def stats(self) -> EngineStats:
        """Return counts since the engine was made."""
        self._recover()
        totals, scheduler, host = self._totals(), self._scheduler, self.executor.host
        busy = totals.busy_ns
        return EngineStats(
            iterations=totals.iterations,
            prompt_tokens=totals.prompt_tokens,
            output_tokens=totals.output_tokens,
            device_tokens=totals.device_tokens,
            host_tokens=totals.host_tokens,
            preemptions=totals.preemptions,
            evictions=totals.evictions,
            landings=totals.landings,
            busy_seconds=busy / 1e9,
            device_utilisation=1 - min(totals.wait_ns, busy) / busy if busy else None,
            host_utilisation=min(1.0, totals.host_busy_ns / busy) if busy else None,
            wait_seconds=totals.wait_ns / 1e9,
            host_seconds=host.attend_ns / 1e9,
            move_seconds=(host.store_ns + host.load_ns) / 1e9,
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            on_host=scheduler.num_on_host,
            free_pages=scheduler.pages.num_free,
            num_pages=scheduler.pages.num_pages,
            free_host_pages=scheduler.host_pages.num_free if scheduler.host_pages else 0,
            num_host_pages=scheduler.host_pages.num_pages if scheduler.host_pages else 0,
        )

    def _schedule(self) -> Plan | None:
        begin = time.perf_counter_ns()
        plan = self._scheduler.schedule()
        recorder = self.executor.recorder
        if recorder is not None and plan is not None:
            recorder.span("python", "plan", begin, time.perf_counter_ns(), iteration=plan.number)
        return plan

    def _submit(self, plan: Plan) -> None:
        now = time.monotonic()
        for chunk in plan.prefill:
            if chunk.start == 0:
                generation = self._generations[chunk.request_id]
                generation.started = generation.started or now
                request = generation.request
                self.executor.device.assign_slot(
                    chunk.slot, generation.params, generation.seed, (*request.prompt, *request.output)
                )
        if self.follower is not None:
            self.follower.expect(plan)
        self._pending.append(self.executor.submit(plan))
        self._counters.iterations += 1
        self._counters.prompt_tokens += plan.prefill_tokens

    def _receive(self, submitted: Submitted) -> None:
        sampled = self.executor.fetch(submitted)
        self._account(submitted)
        plan, now = submitted.plan, time.monotonic()
        arrived = self._scheduler.update(plan, sampled.tokens.tolist())
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
            self._take(generation, sampled, row, now, side)
            self._counters.output_tokens += int(sampled.tokens[row]) >= 0
            if generation.finished:
                del self._generations[request.id]
                self._scheduler.finish(request.id)

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
                self._scheduler.finish(request_id)
                generation.host_error = error
                generation.abort(f"{type(error).__name__}: {error}", now)
                ended.append(error)
        # Once for each error; results have its message alone, the log has where it came from.
        for error in {id(error): error for error in ended}.values():
            count = sum(other is error for other in ended)
            _logger.warning("A host job failed and ended %d request(s): %r", count, error, exc_info=error)

    def _take(self, generation: Generation, sampled: Sampled, row: int, now: float, side: Side) -> None:
        token = int(sampled.tokens[row])
        generation.push(token, now, side)
        wanted = generation.params.logprobs
        if wanted is not None and token >= 0:
            entry = _logprobs(sampled, row, wanted)
            generation.logprobs.append(entry)
            generation.cumulative_logprob += entry[token].logprob


def _logprobs(sampled: Sampled, row: int, wanted: int) -> dict[int, Logprob]:
    """Return the chosen token and the `wanted` most probable ones of one row."""
    assert sampled.logprob is not None
    assert sampled.rank is not None
    assert sampled.top_ids is not None
    assert sampled.top_logprobs is not None
    token = int(sampled.tokens[row])
    entry = {token: Logprob(logprob=float(sampled.logprob[row]), rank=int(sampled.rank[row]))}
    top = sampled.top_logprobs[row, :wanted]
    for place, other in enumerate(sampled.top_ids[row, :wanted].tolist()):
        rank = 1 + int(np.count_nonzero(top > top[place]))
        entry.setdefault(other, Logprob(logprob=float(top[place]), rank=rank))
    return entry
