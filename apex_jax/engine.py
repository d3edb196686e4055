"""The engine loop: schedule, submit, and take in results one iteration late.

Plan i+1 is made and dispatched before the tokens of plan i are read, so the device always has its next iteration
queued while Python works. A request that turns out to have ended at plan i has by then one row too many in plan i+1;
that row's token is dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from .executor import Executor, Submitted
from .outputs import Logprob
from .sampling import Sampled, seed_words
from .sampling_params import SamplingParams
from .scheduler import PageTable, Plan, Request, Scheduler
from .stopping import OutputStream


@dataclass(kw_only=True, eq=False)
class Generation:
    """One completion under way: what the scheduler counts, what the sampler needs, what the user will see."""

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
    error: BaseException | None = None
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

    def push(self, token: int, now: float) -> None:
        """Take in a token that has arrived."""
        before = len(self.stream.token_ids)
        text = self.stream.push((token,))
        if len(self.stream.token_ids) > before:
            self.first_token = now if self.first_token is None else self.first_token
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
        preemptions: times a request lost its pages and was computed again.
        running, waiting: requests now.
        free_pages, num_pages: pages of the device KV cache.
    """

    iterations: int
    prompt_tokens: int
    output_tokens: int
    preemptions: int
    running: int
    waiting: int
    free_pages: int
    num_pages: int


class Engine:
    """Runs requests to their ends on an executor."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._iterations = self._prompt_tokens = self._output_tokens = self._past_preemptions = 0
        self._next_id = 0
        self._torn = False
        self._start_empty()

    def _start_empty(self) -> None:
        buckets = self.executor.buckets
        self._scheduler = Scheduler(
            PageTable(self.executor.num_pages, buckets.page_size),
            max_num_seqs=buckets.max_num_seqs,
            max_prefill_tokens=buckets.max_prefill_pages * buckets.page_size,
        )
        self._generations: dict[int, Generation] = {}
        self._pending: deque[Submitted] = deque()

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
            plan = self._scheduler.schedule()
            if plan is not None:
                self._submit(plan)
            if self._pending and (plan is None or len(self._pending) > 1):
                self._receive(self._pending.popleft())
            elif plan is None and self._generations:
                raise RuntimeError(f"{len(self._generations)} requests are unfinished, but none can be scheduled")

    def abort(self, generation: Generation, reason: str | None = None) -> None:
        """End a completion now; what it holds is free for others. One that has ended already is left as it is."""
        with self._changing():
            if self._generations.pop(generation.request.id, None) is not None:
                self._scheduler.finish(generation.request.id)
            generation.abort(reason, time.monotonic())

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
            generation.error = error
            generation.abort(reason, time.monotonic())
        self._past_preemptions += self._scheduler.preemptions
        self._start_empty()
        self.executor.reset()
        self._torn = False

    def stats(self) -> EngineStats:
        """Return counts since the engine was made."""
        self._recover()
        return EngineStats(
            iterations=self._iterations,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            preemptions=self._past_preemptions + self._scheduler.preemptions,
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            free_pages=self._scheduler.pages.num_free,
            num_pages=self._scheduler.pages.num_pages,
        )

    def _submit(self, plan: Plan) -> None:
        now = time.monotonic()
        for chunk in plan.prefill:
            if chunk.start == 0:
                generation = self._generations[chunk.request_id]
                generation.started = generation.started or now
                request = generation.request
                self.executor.assign_slot(
                    chunk.slot, generation.params, generation.seed, (*request.prompt, *request.output)
                )
        self._pending.append(self.executor.submit(plan))
        self._iterations += 1
        self._prompt_tokens += plan.prefill_tokens

    def _receive(self, submitted: Submitted) -> None:
        sampled = self.executor.fetch(submitted)
        now = time.monotonic()
        for request, row in self._scheduler.update(submitted.plan, sampled.tokens.tolist()):
            generation = self._generations[request.id]
            self._take(generation, sampled, row, now)
            self._output_tokens += int(sampled.tokens[row]) >= 0
            if generation.finished:
                del self._generations[request.id]
                self._scheduler.finish(request.id)

    def _take(self, generation: Generation, sampled: Sampled, row: int, now: float) -> None:
        token = int(sampled.tokens[row])
        generation.push(token, now)
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
