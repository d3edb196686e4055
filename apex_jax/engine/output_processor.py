"""From generated tokens to text on the host: where it ends, why, and how much of it may be shown already.

The text's end depends on the text alone, not on where tokens begin or when they arrive: it ends with the first stop
string that is *completed* (the longest of those completed by the same character).
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from ..execution.sampler import NO_TOKEN
from ..outputs import FinishReason
from ..sampling_params import SamplingParams

NO_TOKEN_LEFT = (
    "the sampling parameters leave no token to draw: repetition_penalty makes a logit infinite, or min_tokens, "
    "allowed_token_ids, bad_words and structured_outputs together rule out all tokens that the model would give"
)
"""Why a completion ended of which the model's logits were as they should be."""


class Detokenizer(Protocol):
    """Turns tokens into text as they come; the texts joined are the text of all tokens."""

    def push(self, ids: Sequence[int], /) -> str:
        """Return the text that these tokens complete."""
        ...

    def finish(self) -> str:
        """Return the rest: the text of tokens that wait for more (half a character)."""
        ...


class StopMatcher:
    """Finds the first completed stop string in a text that comes in pieces, in time linear in the text.

    The automaton of Aho and Corasick (1975): after each character its state is the longest suffix of the text that
    begins some stop string, which is also exactly the part of the text that must not be shown yet.
    """

    def __init__(self, strings: Sequence[str]):
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match: list[str | None] = [None]
        for string in strings:
            self._insert(string)
        self._fail = [0] * len(self._next)
        self._link()
        self._state = 0

    @property
    def held(self) -> int:
        """Length of the text's end that may be part of a stop string to come."""
        return self._depth[self._state]

    def scan(self, text: str) -> tuple[int, str] | None:
        """Read on until a stop string is completed; return (characters of `text` read, stop string), else None."""
        for position, character in enumerate(text):
            state = self._state
            while state and character not in self._next[state]:
                state = self._fail[state]
            self._state = state = self._next[state].get(character, 0)
            match = self._match[state]
            if match is not None:
                return position + 1, match
        return None

    def _insert(self, string: str) -> None:
        state = 0
        for character in string:
            child = self._next[state].get(character)
            if child is None:
                child = len(self._next)
                self._next[state][character] = child
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._match.append(None)
            state = child
        self._match[state] = string

    def _link(self) -> None:
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                fallback = self._fail[state]
                while fallback and character not in self._next[fallback]:
                    fallback = self._fail[fallback]
                self._fail[child] = self._next[fallback].get(character, 0)
                if self._match[child] is None:
                    self._match[child] = self._match[self._fail[child]]
                queue.append(child)


class OutputStream:
    """The tokens and the text of one completion, and its end.

    Tokens are pushed as they arrive, in pieces of any size; those after the end are ignored, so a device that runs
    ahead does no harm.

    Attributes:
        token_ids: accepted tokens, with the one that ended the completion.
        finish_reason, stop_reason: as in `CompletionOutput`.
        max_tokens: the most tokens it accepts.

    Args:
        params: the request's.
        detokenizer: None where there is no tokenizer; the text is then empty and stop strings are refused.
        eos_token_ids: the model's.
        max_tokens: what the context leaves for this request; the smaller of this and `params.max_tokens` holds.

    Raises:
        ValueError: stop strings without a detokenizer, no limit at all, a limit below one.
    """

    def __init__(
        self,
        params: SamplingParams,
        detokenizer: Detokenizer | None,
        *,
        eos_token_ids: Collection[int],
        max_tokens: int | None = None,
    ):
        limits = [limit for limit in (params.max_tokens, max_tokens) if limit is not None]
        if not limits or min(limits) < 1:
            raise ValueError(f"max_tokens must be at least 1, got {params.max_tokens}, and {max_tokens} of the context")
        if detokenizer is None and params.stop_strings:
            raise ValueError(f"stop strings need a tokenizer, got {params.stop_strings!r} and none")
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.max_tokens = min(limits)
        self._min_tokens = params.min_tokens
        self._eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._stop_ids = frozenset(params.stop_token_ids or ())
        self._include_stop = params.include_stop_str_in_output
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(params.stop_strings) if params.stop_strings else None
        self._shown: list[str] = []
        self._held = ""

    @property
    def finished(self) -> bool:
        """Whether the completion has ended."""
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        """The text shown so far: everything, once finished. Costs a pass over the text."""
        return "".join(self._shown)

    def push(self, token_ids: Iterable[int]) -> str:
        """Take tokens in; return the text that has become certain, to be shown after all that came before.

        A negative token is the sampler's mark that there is no distribution, and aborts the completion.
        """
        start = len(self._shown)
        for token in token_ids:
            if self.finished:
                break
            self._accept(int(token))
        return "".join(self._shown[start:])

    def abort(self, reason: str | None = None) -> str:
        """End the completion from outside unless it has ended; return the text that was held back."""
        if self.finished:
            return ""
        start = len(self._shown)
        self._end("abort", reason)
        return "".join(self._shown[start:])

    def _accept(self, token: int) -> None:
        if token < 0:
            self._end("abort", NO_TOKEN_LEFT if token == NO_TOKEN else "the model's logits are not finite")
            return
        self.token_ids.append(token)
        eos = token in self._eos
        stops = (eos or token in self._stop_ids) and len(self.token_ids) >= self._min_tokens
        if self._detokenizer is not None and (self._include_stop or not stops):
            self._read(self._detokenizer.push((token,)))
        if self.finished:
            return
        if stops:
            self._end("stop", None if eos else token)
        elif len(self.token_ids) >= self.max_tokens:
            self._end("length", None)

    def _end(self, finish_reason: FinishReason, stop_reason: str | int | None) -> None:
        if self._detokenizer is not None:
            self._read(self._detokenizer.finish())
        if self.finished:
            return
        self.finish_reason, self.stop_reason = finish_reason, stop_reason
        self._show(self._held)

    def _read(self, text: str) -> None:
        if self._matcher is None:
            self._show(text)
            return
        text, scanned = self._held + text, len(self._held)
        while (found := self._matcher.scan(text[scanned:])) is not None:
            scanned += found[0]
            # As in vLLM, stop strings completed by the first min_tokens tokens do not count.
            if self._min_tokens == 0 or len(self.token_ids) > self._min_tokens:
                self.finish_reason, self.stop_reason = "stop", found[1]
                self._show(text[: scanned if self._include_stop else scanned - len(found[1])])
                return
        certain = len(text) - (0 if self._include_stop else self._matcher.held)
        self._show(text[:certain])
        self._held = text[certain:]

    def _show(self, text: str) -> None:
        if text:
            self._shown.append(text)
