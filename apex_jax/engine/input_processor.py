"""Prompts in all the forms a user may give them, brought to token ids and checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..execution.sampler import banned_tokens
from ..models import LlamaConfig, Tokenizer
from ..sampling_params import SamplingParams
from .grammars import Grammars
from .restrictions import Restrictions, restrictions_of

ARRAYS = (np.ndarray, jax.Array)
BYTES = (bytes, bytearray, memoryview)
Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message] | Mapping[str, Any]
"""A text, token ids, chat messages (`{"role": ..., "content": ...}`), or a mapping with `prompt` or
`prompt_token_ids`."""


@dataclass(frozen=True, kw_only=True)
class TokenizedPrompt:
    """A prompt's token ids, and its text if it was given as one."""

    text: str | None
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CheckedRequest:
    """A prompt with its parameters, and what these restrict, if anything."""

    prompt: TokenizedPrompt
    params: SamplingParams
    restrictions: Restrictions | None


def check_requests(
    prompts: Any,
    sampling_params: Any,
    config: LlamaConfig,
    *,
    tokenizer: Tokenizer | None,
    max_model_len: int,
    grammars: Grammars,
) -> list[CheckedRequest]:
    """Return each prompt with its parameters; see `LLM.generate`.

    Args:
        prompts: one or several, see `as_batch`.
        sampling_params: one for all prompts or one for each; the defaults if None.
        config: the model.
        tokenizer: None allows token ids only.
        max_model_len: longest context in tokens.
        grammars: of structured outputs.

    Raises:
        ModuleNotFoundError: structured outputs without llguidance.
        TypeError, ValueError: one of them cannot be served.
    """
    batch = as_batch(prompts)
    checked: list[CheckedRequest] = []
    # Thousands of prompts may share their parameters.
    known: dict[int, Restrictions | None] = {}
    for prompt, params in zip(batch, _each_params(sampling_params, len(batch)), strict=True):
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling_params must be SamplingParams, got {params!r}")
        if params.stop_strings and tokenizer is None:
            raise ValueError(f"stop strings {params.stop_strings!r} need a tokenizer and this model has none")
        if params.min_tokens > 0:
            banned_tokens(params, config.eos_token_ids)
        found = tokenize(prompt, tokenizer, vocab_size=config.vocab_size, max_model_len=max_model_len)
        if id(params) not in known:
            known[id(params)] = restrictions_of(params, config, tokenizer, grammars)
        checked.append(CheckedRequest(prompt=found, params=params, restrictions=known[id(params)]))
    return checked


def _each_params(sampling_params: Any, count: int) -> list[Any]:
    if sampling_params is None or isinstance(sampling_params, SamplingParams):
        return [sampling_params or SamplingParams()] * count
    if not isinstance(sampling_params, Sequence):
        raise TypeError(f"sampling_params must be SamplingParams or a list of them, got {sampling_params!r}")
    if len(sampling_params) != count:
        raise ValueError(
            f"{len(sampling_params)} sampling_params were given for {count} prompts; one for each is needed"
        )
    return list(sampling_params)


def as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return one prompt or several as a list.

    A text, a list of integers, a list of messages or a mapping is one prompt; any other list holds one prompt an item.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, ARRAYS):
        prompts = prompts.tolist()
    _refuse_bytes(prompts)
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a text, token ids, chat messages or a list of these, got {prompts!r}")
    if not prompts:
        return []
    first = prompts[0]
    if _is_integer(first) or (isinstance(first, Mapping) and "role" in first):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def tokenize(prompt: Prompt, tokenizer: Tokenizer | None, *, vocab_size: int, max_model_len: int) -> TokenizedPrompt:
    """Bring one prompt to token ids.

    Args:
        prompt: see `Prompt`.
        tokenizer: None allows token ids only.
        vocab_size: of the model.
        max_model_len: longest context; a prompt must leave room for one output token.

    Raises:
        TypeError: the prompt has none of the known forms.
        ValueError: it is empty, too long, holds an id outside the vocabulary, or needs a tokenizer where there is none.
    """
    text, ids = _encode(prompt, tokenizer)
    if not ids:
        raise ValueError(f"the prompt {prompt!r} is empty; at least one token is needed")
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(f"token id {outside[0]} is outside the vocabulary of {vocab_size} tokens")
    if len(ids) >= max_model_len:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; with max_model_len={max_model_len} at most {max_model_len - 1} "
            "leave room for one output token"
        )
    return TokenizedPrompt(text=text, ids=tuple(ids))


def _encode(prompt: Prompt, tokenizer: Tokenizer | None) -> tuple[str | None, list[int]]:
    if isinstance(prompt, Mapping):
        if prompt.get("prompt_token_ids") is not None:
            return prompt.get("prompt"), _integers(prompt["prompt_token_ids"])
        if not isinstance(prompt.get("prompt"), str):
            _refuse_bytes(prompt.get("prompt"))
            raise TypeError(f"a prompt mapping needs 'prompt' (text) or 'prompt_token_ids', got keys {list(prompt)}")
        prompt = prompt["prompt"]
    if isinstance(prompt, str):
        return prompt, _encode_text(prompt, tokenizer)
    if isinstance(prompt, ARRAYS):
        prompt = prompt.tolist()
    _refuse_bytes(prompt)
    if not isinstance(prompt, Sequence):
        raise TypeError(f"a prompt must be a text, token ids or chat messages, got {prompt!r}")
    if any(isinstance(item, Mapping) for item in prompt):
        return None, _encode_chat(prompt, tokenizer)
    return None, _integers(prompt)


def _encode_text(text: str, tokenizer: Tokenizer | None) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt {text!r} is not text: {error}") from error
    encoded = _needed(tokenizer, "a text prompt").encode(text)
    # The special tokens that a tokenizer adds to every text are no prompt.
    return encoded if text else []


def chat_prompts(conversations: Any, tokenizer: Tokenizer | None, **options: Any) -> list[dict[str, Any]]:
    """Return one conversation or several as prompts of token ids.

    Args:
        conversations: messages, or lists of them.
        tokenizer: of the model.
        options: as in `Tokenizer.encode_chat`.

    Raises:
        TypeError, ValueError: they are no conversations, or the chat template refuses them.
    """
    for name in ("chat_template", "tools", "chat_template_kwargs"):
        kind = {"chat_template": str, "tools": Sequence, "chat_template_kwargs": Mapping}[name]
        if options[name] is not None and not isinstance(options[name], kind):
            raise TypeError(f"{name} must be {kind.__name__} or None, got {options[name]!r}")
    batch = as_batch(conversations)
    if not all(isinstance(each, Sequence) and not isinstance(each, str) for each in batch):
        raise TypeError(f"chat takes messages or lists of them, got {conversations!r}")
    return [{"prompt_token_ids": _encode_chat(each, tokenizer, **options)} for each in batch]  # type: ignore[arg-type]


def _encode_chat(messages: Sequence[Any], tokenizer: Tokenizer | None, **options: Any) -> list[int]:
    needed = _needed(tokenizer, "a chat prompt")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TypeError(f"messages[{index}] must be a mapping with a 'role' and 'content', got {message!r}")
        content = message.get("content")
        # An assistant that only calls tools says nothing.
        if not isinstance(content, str) and not (content is None and len(message) > 2):
            raise TypeError(
                f"messages[{index}]['content'] must be a text, got {content!r} of type {type(content).__name__}; "
                "join the texts of content given in parts"
            )
    return needed.encode_chat(messages, **options)


def _refuse_bytes(prompt: Any) -> None:
    """Bytes are a sequence of integers too, and would be taken for token ids."""
    if isinstance(prompt, BYTES):
        raise TypeError(f"a prompt must be a text, token ids or chat messages, got {prompt!r}; decode bytes to a text")


def _needed(tokenizer: Tokenizer | None, purpose: str) -> Tokenizer:
    if tokenizer is None:
        raise ValueError(f"{purpose} needs a tokenizer and this model has none; give token ids")
    return tokenizer


def _integers(values: Any) -> list[int]:
    if isinstance(values, ARRAYS):
        values = values.tolist()
    _refuse_bytes(values)
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"token ids must be a list of integers, got {values!r}")
    for value in values:
        if not _is_integer(value):
            raise TypeError(f"token ids must be integers, got {value!r} of type {type(value).__name__}")
    return [int(value) for value in values]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
