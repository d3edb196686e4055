"""What a request changes of the model's logits, worked out on the host from the tokens that it has had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..execution.logit_edits import RowEdits, pack_tokens
from ..models import LlamaConfig, Tokenizer
from ..sampling_params import SamplingParams
from .grammars import Grammars, GrammarState


@dataclass(frozen=True, kw_only=True)
class Restrictions:
    """What all completions of a request share; `start` begins one.

    Attributes:
        params: the request's.
        vocab_size: V.
        bad_words: the token sequences of its bad words.
        allowed: tokens that may be drawn whatever came before, uint32 [ceil(V / 32)]; None allows all.
        grammar: the state before the first token; None without structured outputs.
    """

    params: SamplingParams
    vocab_size: int
    bad_words: tuple[tuple[int, ...], ...]
    allowed: np.ndarray | None
    grammar: GrammarState | None

    def start(self) -> Restricted:
        """Return the restrictions of a completion that has no tokens."""
        return Restricted(of=self, grammar=None if self.grammar is None else self.grammar.copy())


@dataclass(kw_only=True)
class Restricted:
    """The restrictions of a completion under way; a preemption changes nothing, since they follow its output alone."""

    of: Restrictions
    grammar: GrammarState | None
    output: list[int] = field(default_factory=list)
    _counts: Counter[int] = field(default_factory=Counter)

    def push(self, token: int) -> None:
        """Take in the next token.

        Raises:
            GrammarError: the grammar does not go on from there.
        """
        self.output.append(token)
        self._counts[token] += 1
        if self.grammar is not None:
            self.grammar.push(token)

    def edits(self) -> RowEdits:
        """Return what changes for the next token.

        Raises:
            GrammarError: the grammar grows beyond llguidance's limits.
        """
        params, bias = self.of.params, self.of.params.logit_bias or {}
        penalised = params.presence_penalty != 0 or params.frequency_penalty != 0
        ids = np.fromiter({**bias, **self._counts} if penalised else bias, np.int32)
        counts = np.array([self._counts[token] for token in ids.tolist()] if penalised else np.zeros(ids.shape))
        penalty = params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        biases = np.array([bias.get(token, 0.0) for token in ids.tolist()], np.float32)
        return RowEdits(allowed=self._allowed(), ids=ids, bias=biases, penalty=penalty.astype(np.float32))

    def _allowed(self) -> np.ndarray | None:
        allowed = self.of.allowed if self.grammar is None else self.grammar.allowed()
        if self.grammar is not None and self.of.allowed is not None:
            allowed = allowed & self.of.allowed
        ends = [word[-1] for word in self.of.bad_words if len(word) > 1 and self._ends_with(word[:-1])]
        if not ends:
            return allowed
        banned = ~pack_tokens(ends, self.of.vocab_size)
        return banned if allowed is None else allowed & banned

    def _ends_with(self, tokens: Sequence[int]) -> bool:
        return tuple(self.output[-len(tokens) :]) == tuple(tokens)


def restrictions_of(
    params: SamplingParams, config: LlamaConfig, tokenizer: Tokenizer | None, grammars: Grammars
) -> Restrictions | None:
    """Return what a request's parameters restrict; None if nothing.

    Raises:
        ValueError: tokens beyond the vocabulary, nothing that could be drawn, a grammar that cannot be met, or no
            tokenizer where one is needed.
        ModuleNotFoundError: structured outputs without llguidance.
    """
    if not params.edits_logits:
        return None
    vocab_size = config.vocab_size
    _check_inside("logit_bias", params.logit_bias or (), vocab_size)
    _check_inside("allowed_token_ids", params.allowed_token_ids or (), vocab_size)
    words = _bad_words(params, tokenizer, vocab_size)
    may = np.full(vocab_size, params.allowed_token_ids is None)
    may[list(params.allowed_token_ids or ())] = True
    may[[word[0] for word in words if len(word) == 1]] = False
    ends = {*config.eos_token_ids, *(params.stop_token_ids or ())} if params.min_tokens else set()
    if np.count_nonzero(may) == sum(bool(may[token]) for token in ends if token < vocab_size):
        said = f"allowed_token_ids={params.allowed_token_ids}, bad_words={params.bad_words}"
        raise ValueError(f"no token is left to draw with {said}, min_tokens={params.min_tokens}")
    grammar = None
    if params.structured_outputs is not None:
        grammar = grammars.start(params.structured_outputs)
    return Restrictions(
        params=params,
        vocab_size=vocab_size,
        bad_words=words,
        allowed=None if may.all() else pack_tokens(np.flatnonzero(may).tolist(), vocab_size),
        grammar=grammar,
    )


def _check_inside(name: str, ids: Iterable[int], vocab_size: int) -> None:
    outside = [token for token in ids if token >= vocab_size]
    if outside:
        raise ValueError(f"{name} has token id {outside[0]}, outside the vocabulary of {vocab_size} tokens")


def _bad_words(params: SamplingParams, tokenizer: Tokenizer | None, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of bad words as vLLM has them: with a space in front too, where that begins otherwise and is as
    long."""
    if not params.bad_words:
        return ()
    if tokenizer is None:
        raise ValueError(f"bad_words {params.bad_words!r} need a tokenizer and this model has none")
    words: list[tuple[int, ...]] = []
    for text in params.bad_words:
        plain, spaced = (
            tuple(tokenizer.encode(space + text.lstrip(), add_special_tokens=False)) for space in ("", " ")
        )
        if not plain:
            raise ValueError(f"bad_words holds {text!r}, which the tokenizer makes no tokens of")
        words.append(plain)
        if spaced[:1] != plain[:1] and len(spaced) == len(plain):
            words.append(spaced)
    _check_inside("bad_words", (token for word in words for token in word), vocab_size)
    return tuple(words)
