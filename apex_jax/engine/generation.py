"""One completion under way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..execution.sampler import Sampled
from ..outputs import Logprob
from ..sampling_params import SamplingParams
from ..scheduler import Request, Side
from .output_processor import OutputStream


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
        self._hear(text, now)
        wanted = self.params.logprobs
        if wanted is not None and token >= 0:
            entry = _logprobs(sampled, row, wanted)
            self.logprobs.append(entry)
            self.cumulative_logprob += entry[token].logprob

    def abort(self, reason: str | None, now: float) -> None:
        """End from outside, unless it has ended."""
        self._hear(self.stream.abort(reason), now)

    def _hear(self, text: str, now: float) -> None:
        if text:
            self._news.append(text)
        if self.finished and self.ended is None:
            self.ended = now


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
