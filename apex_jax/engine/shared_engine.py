"""An engine that several threads use at once, each with groups of requests of its own."""

from __future__ import annotations

import os
import threading
from _thread import RLock
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..execution.own_contexts import own_contexts
from ..models import LlamaConfig, Tokenizer
from ..outputs import RequestOutput
from .engine import Engine
from .input_processor import CheckedRequest
from .output_processor import OutputStream
from .request_group import Generation, RequestGroup, delta, result


class FairLock(RLock):  # pyright: ignore[reportGeneralTypeIssues]
    """A lock that a thread does not get again before those that were waiting for it.

    A plain lock goes back to a thread that releases and takes it in a loop, as a thread that generates does; others
    then wait for dozens of iterations. Re-entrant, so that an interrupt that falls between taking the lock and the
    body of the `with` (well under a microsecond) cannot shut out the thread that it came to. It is left in C, where
    no interrupt comes in between.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._turn = threading.RLock()

    def __enter__(self) -> bool:
        if os.getpid() != self._process:
            # Neither JAX's threads nor the host worker's have come along, and nobody may ever release this lock.
            raise RuntimeError(
                f"this LLM was made in process {self._process}, and a forked child (process {os.getpid()}) cannot use "
                'it: make one in the child, and start children with multiprocessing\'s "spawn" method'
            )
        taken = False
        try:
            with self._turn:
                taken = self.acquire()
        except BaseException:
            if taken:
                self.release()
            raise
        return taken


class Call:
    """The requests of one call, and what has become of them: an iteration looks at those alone that it concerns.

    Attributes:
        groups: all of them, in order.
        open: completions that have not ended, each with its group.
        ended: groups of which all completions have.
        news: completions of which something is to be told.
        error: what emptied the engine while they were under way, if anything did.
    """

    def __init__(self) -> None:
        self.groups: list[RequestGroup] = []
        self.open: dict[Generation, RequestGroup] = {}
        self.ended: set[RequestGroup] = set()
        self.news: dict[Generation, RequestGroup] = {}
        self.error: BaseException | None = None
        self._group: dict[Generation, RequestGroup] = {}

    def follow(self, group: RequestGroup, generation: Generation) -> None:
        """Take in a completion before the engine knows of it."""
        self.open[generation] = self._group[generation] = group
        group.generations.append(generation)
        generation.listener = self._hear

    def take_news(self) -> list[tuple[RequestGroup, Generation]]:
        """Return the completions of which there is news, in order, and their groups; they have none then."""
        news, self.news = self.news, {}
        found = sorted(news, key=lambda generation: generation.request.id)
        return [(news[generation], generation) for generation in found if generation.has_news]

    def _hear(self, generation: Generation) -> None:
        # An interrupt may come in between; then the engine ends everybody, which is heard again.
        group = self._group[generation]
        self.news[generation] = group
        if not generation.finished:
            return
        self.error = self.error or generation.engine_error
        if group.finished:
            self.ended.add(group)
        self.open.pop(generation, None)


class SharedEngine:
    """Serves the callers of an engine: whoever has requests under way runs iterations, for all.

    Args:
        engine: used by nobody else, but with `exclusive` held.
        config: the model.
        tokenizer: None if the model has none.
        max_model_len: longest context in tokens, prompt and output.
        seed: of requests that have none.
    """

    def __init__(
        self, engine: Engine, config: LlamaConfig, tokenizer: Tokenizer | None, *, max_model_len: int, seed: int | None
    ) -> None:
        self._engine = engine
        self._config = config
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._seeds = np.random.default_rng(seed)
        self._lock = FairLock()
        self._dropped: deque[Call] = deque()
        self._num_groups = 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads and the caller's JAX contexts from the engine while the context is open; what callers have
        left behind is aborted."""
        with self._lock, own_contexts():
            self._abort_dropped()
            yield

    @contextmanager
    def idle(self, caller: str) -> Iterator[None]:
        """Be `exclusive` for a method that the engine must be empty for.

        Raises:
            RuntimeError: requests are under way.
        """
        with self.exclusive():
            if self._engine.has_unfinished:
                raise RuntimeError(f"{caller} was called while requests are under way; let them end or close them")
            yield

    def generate(self, checked: Sequence[CheckedRequest], progress: Callable[[int], object]) -> list[RequestOutput]:
        """Run requests to their ends; `progress` is told how many more have ended. See `LLM.generate`."""
        call = Call()
        try:
            # Once for all iterations: entering takes 30 us.
            with own_contexts():
                self.begin(call, checked)
                told = 0
                while told < len(call.groups):
                    with self._lock:
                        self._step(call)
                    before, told = told, len(call.ended)
                    progress(told - before)
            return [result(group, self._tokenizer) for group in call.groups]
        finally:
            self._dropped.append(call)

    def stream(self, checked: Sequence[CheckedRequest]) -> Iterator[RequestOutput]:
        """Run requests and yield what is new as it comes; see `LLM.stream`."""
        call = Call()
        try:
            with own_contexts():
                self.begin(call, checked)
            while call.open or call.news:
                with self._lock, own_contexts():
                    self._step(call)
                    news = [delta(group, generation, self._tokenizer) for group, generation in call.take_news()]
                yield from news
        finally:
            self._dropped.append(call)

    def begin(self, call: Call, checked: Sequence[CheckedRequest]) -> None:
        """Queue requests, noting each in `call` before the engine knows of it."""
        with self._lock:
            self._abort_dropped()
            for each in checked:
                call.groups.append(
                    RequestGroup(
                        request_id=str(self._num_groups),
                        prompt=each.prompt,
                        params=each.params,
                        restrictions=each.restrictions,
                    )
                )
                self._num_groups += 1
                self._add_generations(call)

    def _step(self, call: Call) -> None:
        """Run one iteration, unless another thread's iterations have ended all that was called for meanwhile."""
        self._abort_dropped()
        if call.open:
            self._engine.step()
        if call.error is not None:
            raise RuntimeError("the engine failed while this request was under way") from call.error

    def _abort_dropped(self) -> None:
        """Abort what callers have left behind.

        They only note it: an interrupt may cut short whatever else they did, and an iterator may be closed by the
        garbage collector in the middle of an iteration of the engine.
        """
        while self._dropped:
            for generation in list(self._dropped[0].open):
                self._engine.abort(generation)
            self._dropped.popleft()

    def _add_generations(self, call: Call) -> None:
        group = call.groups[-1]
        params, ids = group.params, group.prompt.ids
        seed = int(self._seeds.integers(2**63)) if params.seed is None else params.seed
        room = self._max_model_len - len(ids)
        for index in range(params.n):
            detokenizer = None
            if self._tokenizer is not None:
                detokenizer = self._tokenizer.detokenizer(skip_special_tokens=params.skip_special_tokens, context=ids)
            stream = OutputStream(params, detokenizer, eos_token_ids=self._config.eos_token_ids, max_tokens=room)
            restricted = None if group.restrictions is None else group.restrictions.start()
            generation = self._engine.prepare(ids, params, stream, seed=seed, index=index, restricted=restricted)
            call.follow(group, generation)
            self._engine.add(generation)
