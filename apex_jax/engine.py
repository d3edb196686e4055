"""The engine loop: schedule, submit, and take in results one iteration late.

Plan i+1 is made and dispatched before the tokens of plan i are read, so the device always has its next iteration
queued while Python works. A request that turns out to have ended at plan i has by then one row too many in plan i+1;
that row's token is dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
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
    params: SamplingParams
    seed: np.ndarray
    stream: OutputStream
    arrival: float
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def finished(self) -> bool:
        return self.stream.finished


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
    """Runs requests to their ends.

    Args:
        executor: device state and programs.
        max_num_seqs: requests that run at once.
        max_prefill_tokens: prompt tokens computed in one iteration.
    """

    def __init__(self, executor: Executor, *, max_num_seqs: int, max_prefill_tokens: int) -> None:
        self.executor = executor
        self._max_num_seqs = max_num_seqs
        self._max_prefill_tokens = max_prefill_tokens
        self._iterations = self._prompt_tokens = self._output_tokens = self._past_preemptions = 0
        self._next_id = 0
        self._start_empty()

    def _start_empty(self) -> None:
        executor = self.executor
        self._scheduler = Scheduler(
            PageTable(executor.num_pages, executor.buckets.page_size),
            max_num_seqs=self._max_num_seqs,
            max_prefill_tokens=self._max_prefill_tokens,
        )
        self._generations: dict[int, Generation] = {}
        self._pending: deque[Submitted] = deque()
        self._inside_step = False

    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        stream: OutputStream,
        *,
        seed: int,
        index: int,
        max_tokens: int,
    ) -> Generation:
        """Queue one completion.

        Args:
            prompt: token ids.
            params: how to sample.
            stream: takes the tokens and decides where they end.
            seed: of the request; `index` tells its completions apart.
            max_tokens: output tokens for which the scheduler plans.

        Raises:
            ValueError: the device KV cache can never hold the request.
        """
        request = Request(id=self._next_id, prompt=tuple(prompt), max_tokens=max_tokens)
        self._scheduler.add(request)
        self._next_id += 1
        generation = Generation(
            request=request, params=params, seed=seed_words(seed, index), stream=stream, arrival=time.monotonic()
        )
        self._generations[request.id] = generation
        return generation

    @property
    def has_unfinished(self) -> bool:
        return bool(self._generations)

    def step(self) -> None:
        """Run one iteration: submit the next plan, then take in the results of the one before it.

        Raises:
            Exception: whatever the device raised. All requests have been aborted then and carry the exception; the
                engine is empty and usable.
        """
        self._inside_step = True
        try:
            plan = self._scheduler.schedule()
            if plan is not None:
                self._submit(plan)
            if self._pending and (plan is None or len(self._pending) > 1):
                self._receive(self._pending.popleft())
            elif plan is None and self._generations:
                raise RuntimeError(f"{len(self._generations)} requests are unfinished, but none can be scheduled")
        except BaseException as error:
            self._abandon(error)
            raise
        self._inside_step = False

    def abort(self, generation: Generation, reason: str | None = None) -> None:
        """End a completion now; what it holds is free for others. One that has ended already is left as it is."""
        if self._generations.pop(generation.request.id, None) is not None:
            self._scheduler.finish(generation.request.id)
        if not generation.finished:
            generation.stream.abort(reason)
            generation.ended = time.monotonic()

    def stats(self) -> EngineStats:
        """Return counts since the engine was made."""
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
            generation.first_token = generation.first_token or now
            self._take(generation, sampled, row)
            self._output_tokens += 1
            if generation.finished:
                generation.ended = now
                del self._generations[request.id]
                self._scheduler.finish(request.id)

    def _take(self, generation: Generation, sampled: Sampled, row: int) -> None:
        token = int(sampled.tokens[row])
        generation.stream.push((token,))
        wanted = generation.params.logprobs
        if wanted is not None and token >= 0:
            entry = _logprobs(sampled, row, wanted)
            generation.logprobs.append(entry)
            generation.cumulative_logprob += entry[token].logprob

    def _abandon(self, error: BaseException) -> None:
        """Drop all requests after an exception in the middle of an iteration, when nobody knows what was submitted."""
        reason = f"{type(error).__name__}: {error}"
        for generation in self._generations.values():
            generation.error = error
            generation.stream.abort(reason)
            generation.ended = time.monotonic()
        self._past_preemptions += self._scheduler.preemptions
        self._start_empty()
        self.executor.reset()


def _logprobs(sampled: Sampled, row: int, wanted: int) -> dict[int, Logprob]:
    """Return the chosen token and the `wanted` most probable ones of one row."""
    token = int(sampled.tokens[row])
    entry = {token: Logprob(logprob=float(sampled.logprob[row]), rank=int(sampled.rank[row]))}
    for place in range(wanted):
        other = int(sampled.top_ids[row, place])
        entry.setdefault(other, Logprob(logprob=float(sampled.top_logprobs[row, place]), rank=place + 1))
    return entry
