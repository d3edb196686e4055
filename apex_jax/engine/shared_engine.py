"""An engine that several threads use at once, each with groups of requests of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import numpy as np

from ..models import LlamaConfig, Tokenizer
from ..outputs import RequestOutput
from ..sampling_params import SamplingParams
from .engine import Engine
from .input_processor import TokenizedPrompt
from .output_processor import OutputStream
from .request_group import RequestGroup, delta, result


class FairLock:
    """A lock that a thread does not get again before those that were waiting for it.

    A plain lock goes back to a thread that releases and takes it in a loop, as a thread that generates does; others
    then wait for dozens of iterations. Re-entrant, so that an interrupt that falls between taking the lock and the
    body of the `with` (well under a microsecond) cannot shut out the thread that it came to.
    """

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        taken = False
        try:
            with self._turn:
                taken = self._lock.acquire()
        except BaseException:
            if taken:
                self._lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()


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
        self._dropped: deque[list[RequestGroup]] = deque()
        self._num_groups = 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads from the engine while the context is open; what callers have left behind is aborted."""
        with self._lock:
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

    def generate(
        self, checked: Sequence[tuple[TokenizedPrompt, SamplingParams]], progress: Callable[[int], object]
    ) -> list[RequestOutput]:
        """Run requests to their ends; `progress` is told how many more have ended. See `LLM.generate`."""
        groups: list[RequestGroup] = []
        try:
            self.begin(groups, checked)
            finished = 0
            while finished < len(groups):
                with self._lock:
                    self._step(groups)
                before, finished = finished, sum(group.finished for group in groups)
                progress(finished - before)
            return [result(group, self._tokenizer) for group in groups]
        finally:
            self._dropped.append(groups)

    def stream(self, checked: Sequence[tuple[TokenizedPrompt, SamplingParams]]) -> Iterator[RequestOutput]:
        """Run requests and yield what is new as it comes; see `LLM.stream`."""
        groups: list[RequestGroup] = []
        try:
            self.begin(groups, checked)
            unfinished = groups
            while unfinished:
                with self._lock:
                    self._step(unfinished)
                    news = [
                        delta(group, generation, self._tokenizer)
                        for group in unfinished
                        for generation in group.generations
                        if generation.has_news
                    ]
                    # Under the lock still: a group that another caller's step ends later has news to tell.
                    unfinished = [group for group in unfinished if not group.finished]
                yield from news
        finally:
            self._dropped.append(groups)

    def begin(self, groups: list[RequestGroup], checked: Sequence[tuple[TokenizedPrompt, SamplingParams]]) -> None:
        """Queue requests, noting each in `groups` before the engine knows of it."""
        with self._lock:
            self._abort_dropped()
            for prompt, params in checked:
                groups.append(RequestGroup(request_id=str(self._num_groups), prompt=prompt, params=params))
                self._num_groups += 1
                self._add_generations(groups[-1])

    def _step(self, groups: Sequence[RequestGroup]) -> None:
        """Run one iteration, unless another thread's iterations have ended all these groups meanwhile."""
        self._abort_dropped()
        if not all(group.finished for group in groups):
            self._engine.step()
        for group in groups:
            if group.engine_error is not None:
                raise RuntimeError("the engine failed while this request was under way") from group.engine_error

    def _abort_dropped(self) -> None:
        """Abort what callers have left behind.

        They only note it: an interrupt may cut short whatever else they did, and an iterator may be closed by the
        garbage collector in the middle of an iteration of the engine.
        """
        while self._dropped:
            for group in self._dropped[0]:
                for generation in group.generations:
                    self._engine.abort(generation)
            self._dropped.popleft()

    def _add_generations(self, group: RequestGroup) -> None:
        params, ids = group.params, group.prompt.ids
        seed = int(self._seeds.integers(2**63)) if params.seed is None else params.seed
        room = self._max_model_len - len(ids)
        for index in range(params.n):
            detokenizer = None
            if self._tokenizer is not None:
                detokenizer = self._tokenizer.detokenizer(skip_special_tokens=params.skip_special_tokens, context=ids)
            stream = OutputStream(params, detokenizer, eos_token_ids=self._config.eos_token_ids, max_tokens=room)
            group.generations.append(self._engine.prepare(ids, params, stream, seed=seed, index=index))
            self._engine.add(group.generations[-1])
