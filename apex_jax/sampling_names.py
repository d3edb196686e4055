"""Names of sampling parameters as other programs have them."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "max_length": "max_tokens, of the output alone",
    "num_return_sequences": "n",
    "best_of": "n",
    "do_sample": "temperature, where 0 is greedy",
    "bad_words_ids": "bad_words, as texts",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "guided_decoding": "structured_outputs",
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
    "response_format": "structured_outputs",
    "logits_processors": "logit_bias, bad_words, allowed_token_ids or structured_outputs",
    "truncate_prompt_tokens": "max_model_len of the LLM, which refuses longer prompts; cut the token ids",
    "prompt_logprobs": "logprobs, of the output alone",
}
"""What others call a parameter, and what does it here."""

ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "detokenize": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (None,),
    "prompt_logprobs": (None,),
    "logits_processors": (None,),
    "guided_decoding": (None,),
    "output_kind": (None,),
    "extra_args": (None,),
    "flat_logprobs": (False,),
    "skip_reading_prefix_cache": (None, False),
}
"""Parameters of vLLM, with the values that are what happens here anyway."""


def takes_names_of_vllm(params: Class) -> Class:
    """Let a dataclass be made with names that ask for nothing, and say what others are called here."""
    plain: Callable[..., None] = params.__init__  # pyright: ignore[reportAttributeAccessIssue]
    names = [field.name for field in fields(params)]  # pyright: ignore[reportArgumentType]

    @functools.wraps(plain)
    def initialise(self: Any, *args: Any, **values: Any) -> None:
        plain(self, *args, **{name: value for name, value in values.items() if not _is_nothing(name, value, names)})

    params.__init__ = initialise  # pyright: ignore[reportAttributeAccessIssue]
    return params


def _is_nothing(name: str, value: Any, names: list[str]) -> bool:
    if name in names:
        return False
    allowed = ASKS_FOR_NOTHING.get(name, ())
    if any(value is each or (type(value) is not bool and value == each) for each in allowed):
        return True
    raise TypeError(f"SamplingParams has no parameter {name!r} (it is {value!r}){_near(name, names)}")


def _near(name: str, names: list[str]) -> str:
    if name in ELSEWHERE:
        return f"; here that is {ELSEWHERE[name]}"
    if name in ASKS_FOR_NOTHING:
        allowed = " or ".join(map(repr, ASKS_FOR_NOTHING[name]))
        return f"; of what it means elsewhere only {allowed} is done here"
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(names))}"
