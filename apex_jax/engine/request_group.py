"""A user's request under way with its completions, and what it looks like from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np

from ..execution.logit_edits import RowEdits
from ..execution.sampler import Sampled
from ..models import Tokenizer
from ..outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from ..sampling_params import SamplingParams
from ..scheduler import Request, Side
from .grammars import GrammarError
from .input_processor import TokenizedPrompt
from .output_processor import OutputStream
from .restrictions import Restricted, Restrictions


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
        restricted: what it changes of the model's logits, if anything.
        host_error: what the host could not do for this one, if that ended it.
        engine_error: what emptied the engine of all requests, if that ended it.
        listener: told whenever tokens, text or the end have come, perhaps more than once for the same.
    """

    request: Request
    index: int
    params: SamplingParams
    seed: np.ndarray
    stream: OutputStream
    arrival: float
    restricted: Restricted | None = None
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    pace: dict[Side, Pace] = field(default_factory=lambda: {"device": Pace(), "host": Pace()})
    host_error: BaseException | None = None
    engine_error: BaseException | None = None
    listener: Callable[[Generation], object] = lambda generation: None
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

    def push(self, sampled: Sampled, row: int, now: float, side: Side) -> None:
        """Take in the token of a row, which has arrived after attention on that side."""
        token, before = int(sampled.tokens[row]), len(self.stream.token_ids)
        text = self.stream.push((token,))
        if len(self.stream.token_ids) > before:
            if self.last_token is None:
                self.first_token = now
            else:
                self.pace[side].gaps += 1
                self.pace[side].seconds += now - self.last_token
            self.pace[side].tokens += 1
            self.last_token = now
            if self.restricted is not None and not self.finished:
                try:
                    self.restricted.push(token)
                except GrammarError as error:
                    text += self.stream.abort(str(error))
        self._hear(text, now)
        wanted = self.params.logprobs
        if wanted is not None and token >= 0:
            entry = _logprobs(sampled, row, wanted)
            self.logprobs.append(entry)
            self.cumulative_logprob += entry[token].logprob

    def edits(self, now: float) -> RowEdits | None:
        """Return what changes of the logits of its next token, all before which must have been pushed."""
        if self.restricted is None or self.finished:
            return None
        try:
            return self.restricted.edits()
        except GrammarError as error:
            self.abort(str(error), now)
            return None

    def abort(self, reason: str | None, now: float) -> None:
        """End from outside, unless it has ended."""
        self._hear(self.stream.abort(reason), now)

    def _hear(self, text: str, now: float) -> None:
        if text:
            self._news.append(text)
        if self.finished and self.ended is None:
            self.ended = now
        self.listener(self)


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


@dataclass(kw_only=True, eq=False)
class RequestGroup:
    """A prompt with its `n` completions."""

    request_id: str
    prompt: TokenizedPrompt
    params: SamplingParams
    restrictions: Restrictions | None = None
    generations: list[Generation] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return all(generation.finished for generation in self.generations)

    @property
    def told(self) -> bool:
        """Whether all completions have ended and their news has been taken."""
        return all(generation.finished and not generation.has_news for generation in self.generations)


def result(group: RequestGroup, tokenizer: Tokenizer | None) -> RequestOutput:
    """Return a group as far as it has come."""
    completions = [
        _completion(generation, tokenizer, generation.stream.text, first_token=0) for generation in group.generations
    ]
    return _request(group, completions, finished=group.finished)


def delta(group: RequestGroup, generation: Generation, tokenizer: Tokenizer | None) -> RequestOutput:
    """Return what one completion has gained since the last call for it."""
    text, first_token = generation.take_news()
    completion = _completion(generation, tokenizer, text, first_token=first_token)
    return _request(group, [completion], finished=group.told)


def _request(group: RequestGroup, completions: list[CompletionOutput], *, finished: bool) -> RequestOutput:
    return RequestOutput(
        request_id=group.request_id,
        prompt=group.prompt.text,
        prompt_token_ids=list(group.prompt.ids),
        outputs=completions,
        finished=finished,
        metrics=_metrics(group.generations),
    )


def _completion(
    generation: Generation, tokenizer: Tokenizer | None, text: str, *, first_token: int
) -> CompletionOutput:
    wants_logprobs = generation.params.logprobs is not None
    return CompletionOutput(
        index=generation.index,
        text=text,
        token_ids=generation.stream.token_ids[first_token:],
        cumulative_logprob=generation.cumulative_logprob if wants_logprobs else None,
        logprobs=[_decoded(entry, tokenizer) for entry in generation.logprobs[first_token:]]
        if wants_logprobs
        else None,
        finish_reason=generation.stream.finish_reason,
        stop_reason=generation.stream.stop_reason,
    )


def _decoded(entry: dict[int, Logprob], tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    if tokenizer is None:
        return entry
    return {
        token: replace(logprob, decoded_token=tokenizer.decode([token], skip_special_tokens=False))
        for token, logprob in entry.items()
    }


def _metrics(generations: Sequence[Generation]) -> RequestMetrics:
    arrival = min(generation.arrival for generation in generations)
    started = [g.started for g in generations if g.started is not None]
    first = [g.first_token for g in generations if g.first_token is not None]
    paces = [
        (g.last_token - g.first_token) / (len(g.stream.token_ids) - 1)
        for g in generations
        if g.first_token is not None and g.last_token is not None and len(g.stream.token_ids) > 1
    ]
    ended = [time.monotonic() if g.ended is None else g.ended for g in generations]
    return RequestMetrics(
        arrival_time=arrival,
        time_in_queue=min(started) - arrival if started else None,
        time_to_first_token=min(first) - arrival if first else None,
        time_per_output_token=fmean(paces) if paces else None,
        total_time=max(ended) - arrival,
        device_tokens=sum(g.pace["device"].tokens for g in generations),
        host_tokens=sum(g.pace["host"].tokens for g in generations),
        time_per_device_token=_mean_gap(generations, "device"),
        time_per_host_token=_mean_gap(generations, "host"),
        evictions=sum(g.request.evictions for g in generations),
        landings=sum(g.request.landings for g in generations),
        preemptions=sum(g.request.preemptions for g in generations),
    )


def _mean_gap(generations: Sequence[Generation], side: Side) -> float | None:
    gaps = sum(g.pace[side].gaps for g in generations)
    return sum(g.pace[side].seconds for g in generations) / gaps if gaps else None
