"""What a user may ask of sampling and stopping; names and defaults are vLLM's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real

from .sampling_names import takes_names_of_vllm
from .structured_outputs import StructuredOutputsParams

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM."""

MAX_LOGPROBS = 20
"""The most alternatives a request may ask for at each position; what the compiled program returns."""

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1
_MAX_TEMPERATURE = 1e6


@takes_names_of_vllm
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen and when they end.

    Names of vLLM beside these (`best_of`, `detokenize`, ...) are taken with the values that ask for nothing.

    Attributes:
        n: completions of the prompt, each with its own random numbers.
        temperature: 0 is greedy; 1 samples the model's own distribution.
        top_p: keep the fewest most probable tokens whose probabilities reach this, in (0, 1].
        top_k: keep this many most probable tokens; 0 or -1 keeps all.
        min_p: keep tokens at least this fraction as probable as the most probable one, in [0, 1].
        repetition_penalty: logits of tokens seen in prompt or output are divided (positive) or multiplied
            (negative) by this; 1 is none.
        presence_penalty: taken off the logits of tokens that the output has, in [-2, 2].
        frequency_penalty: the same, times how often the output has them.
        logit_bias: what is added to the model's logits, token id to a number in [-100, 100].
        allowed_token_ids: no others are drawn, EOS included; None allows all.
        bad_words: texts that do not come about: their last token is not drawn after the tokens before it, with and
            without a space in front. As in vLLM, a text that the model spells in other tokens is not seen.
        structured_outputs: what the text must look like; it ends with EOS when it does and no more can follow.
        seed: integer in [0, 2**63 - 1]; the same seed and prompt give the same tokens. None draws a new one.
        max_tokens: the most tokens to generate; None is as many as fit.
        min_tokens: neither EOS nor stop tokens are drawn before this many; stop strings within them are ignored.
        stop: string or strings that end the text; the text is cut before them.
        stop_token_ids: tokens that end the text, beside EOS.
        ignore_eos: go on after EOS.
        logprobs: how many top alternatives to report beside each chosen token, 0 to 20; None reports nothing.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_str_in_output: leave the stop string, or the text of the stop token, in the text.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: str | Sequence[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "n": _integer("n", self.n, 1, _INT32_MAX),
            "temperature": _real("temperature", self.temperature, 0.0, _MAX_TEMPERATURE),
            "top_p": _real("top_p", self.top_p, 0.0, 1.0, above_low=True),
            "top_k": _integer("top_k", self.top_k, -1, _INT32_MAX),
            "min_p": _real("min_p", self.min_p, 0.0, 1.0),
            "repetition_penalty": _real("repetition_penalty", self.repetition_penalty, 0.0, 1e6, above_low=True),
            "presence_penalty": _real("presence_penalty", self.presence_penalty, -2.0, 2.0),
            "frequency_penalty": _real("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            "logit_bias": _biases(self.logit_bias),
            "allowed_token_ids": None
            if self.allowed_token_ids is None
            else tuple(dict.fromkeys(_token_ids("allowed_token_ids", self.allowed_token_ids))),
            "bad_words": _strings("bad_words", self.bad_words),
            "seed": None if self.seed is None else _integer("seed", self.seed, 0, _INT64_MAX),
            "max_tokens": None if self.max_tokens is None else _integer("max_tokens", self.max_tokens, 1, _INT32_MAX),
            "min_tokens": _integer("min_tokens", self.min_tokens, 0, _INT32_MAX),
            "stop": _strings("stop", self.stop),
            "stop_token_ids": _token_ids("stop_token_ids", self.stop_token_ids),
            "logprobs": None if self.logprobs is None else _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        self._check_together()

    def _check_together(self) -> None:
        if self.allowed_token_ids == ():
            raise ValueError("allowed_token_ids must hold at least one token, got none; None allows all")
        if any(not word.strip() for word in self.bad_words or ()):
            raise ValueError(f"bad_words must not hold an empty string or spaces alone, got {self.bad_words!r}")
        given = self.structured_outputs
        if given is not None and not isinstance(given, StructuredOutputsParams):
            raise TypeError(f"structured_outputs must be StructuredOutputsParams, got {given!r}")
        if given is not None and self.ignore_eos:
            raise ValueError("structured_outputs end with EOS, got them with ignore_eos=True")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < GREEDY_BELOW

    @cached_property
    def edits_logits(self) -> bool:
        """Whether its logits are changed by what only the host knows, see `apex_jax.execution.logit_edits`."""
        penalised = self.presence_penalty != 0 or self.frequency_penalty != 0
        restricted = self.allowed_token_ids is not None or bool(self.bad_words) or self.structured_outputs is not None
        return penalised or restricted or bool(self.logit_bias)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    return number


def _real(name: str, value: object, low: float, high: float, *, above_low: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    number = float(value)
    if math.isnan(number) or not low <= number <= high or (above_low and number == low):
        raise ValueError(f"{name} must be in {'(' if above_low else '['}{low:g}, {high:g}], got {value}")
    return number


def _strings(name: str, value: object) -> tuple[str, ...]:
    items = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise TypeError(f"{name} must be a string or a list of strings, got {value!r}")
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"{name} must hold strings only, got {item!r} of type {type(item).__name__}")
        if not item:
            raise ValueError(f"{name} must not hold an empty string, got {value!r}")
    return tuple(items)


def _biases(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias must be a mapping of token ids to numbers, got {value!r}")
    # Ids are texts where they come from JSON.
    ids = [int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else key for key in value]
    ids = [_integer("every token id of logit_bias", key, 0, _INT32_MAX) for key in ids]
    return {
        token: _real(f"logit_bias[{token}]", bias, -100.0, 100.0)
        for token, bias in zip(ids, value.values(), strict=True)
    }


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    items = () if value is None else value
    if not isinstance(items, list | tuple | set | frozenset):
        raise TypeError(f"{name} must be a list of token ids, got {value!r}")
    return tuple(_integer(f"every item of {name}", item, 0, _INT32_MAX) for item in items)
