"""Structured outputs: which tokens may follow, by llguidance."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any

import numpy as np

from ..execution.logit_edits import words
from ..models import LlamaConfig, Tokenizer
from ..structured_outputs import StructuredOutputsParams

ANY_OBJECT = '{"type": "object"}'


class GrammarError(ValueError):
    """A grammar cannot be compiled, met or followed."""


class GrammarState:
    """How far a text has come in a grammar.

    Args:
        matcher: llguidance's.
        vocab_size: V of the model.
    """

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> GrammarState:
        """Return the same state, which goes on by itself."""
        return GrammarState(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> np.ndarray:
        """Return the tokens that may follow, uint32 [ceil(V / 32)]; EOS alone where the grammar ends.

        Raises:
            GrammarError: the grammar grows beyond llguidance's limits.
        """
        found = self._matcher.compute_bitmask()
        self._check()
        size = 4 * words(self._vocab_size)
        return np.frombuffer(found[:size].ljust(size, b"\0"), "<u4").astype(np.uint32)

    def push(self, token: int) -> None:
        """Go on with a token.

        Raises:
            GrammarError: it may not follow.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"structured outputs cannot go on: {_first_line(self._matcher.get_error())}")


class Grammars:
    """Compiles grammars for a model's vocabulary.

    Args:
        tokenizer: None if the model has none.
        config: the model.
    """

    def __init__(self, tokenizer: Tokenizer | None, config: LlamaConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._lock = threading.Lock()
        self._vocabulary: Any = None

    def start(self, wanted: StructuredOutputsParams) -> GrammarState:
        """Return the state before the first token.

        Raises:
            GrammarError: the grammar does not compile or nothing meets it.
            ValueError: the model has no tokenizer or no EOS.
            ModuleNotFoundError: llguidance is not installed.
        """
        if self._tokenizer is None:
            raise ValueError("structured outputs need a tokenizer and this model has none")
        if not self._config.eos_token_ids:
            raise ValueError("structured outputs end with EOS, and this model has none")
        try:
            from llguidance import LLMatcher
        except ModuleNotFoundError as error:
            said = "structured outputs need llguidance: pip install 'apex-jax[structured]'"
            raise ModuleNotFoundError(said, name=error.name) from error
        vocabulary = self._known_vocabulary(self._tokenizer)
        form, text = _as_text(wanted)
        spaces: Any = {"whitespace_flexible": False} if wanted.disable_any_whitespace else None
        make = {
            "json": partial(LLMatcher.grammar_from_json_schema, overrides=spaces),
            "regex": LLMatcher.grammar_from_regex,
            "grammar": LLMatcher.grammar_from_lark,
        }[form]
        try:
            matcher = LLMatcher(vocabulary, make(text), log_level=0)
        except ValueError as error:
            raise GrammarError(f"the {form} of structured outputs cannot be used: {_first_line(str(error))}") from error
        if matcher.is_error():
            raise GrammarError(f"the {form} of structured outputs cannot be met: {_first_line(matcher.get_error())}")
        state = GrammarState(matcher, self._config.vocab_size)
        try:
            state.copy().allowed()
        except GrammarError as error:
            said = f"the {form} of structured outputs cannot be met: no token of this model can begin it ({error})"
            raise GrammarError(said) from error
        return state

    def _known_vocabulary(self, tokenizer: Tokenizer) -> Any:
        """Return what llguidance knows of the vocabulary; takes a second, once."""
        from llguidance.hf import from_tokenizer

        with self._lock:
            if self._vocabulary is not None:
                return self._vocabulary
            try:
                size = max(self._config.vocab_size, tokenizer.vocab_size)
                eos = list(self._config.eos_token_ids)
                self._vocabulary = from_tokenizer(tokenizer.backend, n_vocab=size, eos_token=eos)
            except ValueError as error:
                said = f"structured outputs need a tokenizer that llguidance knows: {_first_line(str(error))}"
                raise GrammarError(said) from error
            return self._vocabulary


def _as_text(wanted: StructuredOutputsParams) -> tuple[str, str]:
    """Return one of llguidance's own forms, and the text of the grammar in it."""
    if wanted.choice is not None:
        return "grammar", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in wanted.choice)
    if wanted.json_object:
        return "json", ANY_OBJECT
    form = next(name for name in ("json", "regex", "grammar") if getattr(wanted, name) is not None)
    return form, getattr(wanted, form)


def _first_line(error: str) -> str:
    return error.partition("\n")[0][:500]
