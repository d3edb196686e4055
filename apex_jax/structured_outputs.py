"""What a text must look like; names are vLLM's."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORMS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """The form that the text of a completion must have; exactly one is given.

    Attributes:
        json: a JSON schema, as a mapping or as its text; kept as text.
        regex: a regular expression of the Rust crate `regex` (no look-around, no back-references) for the whole text.
        choice: the texts that it may be.
        grammar: a context-free grammar in the Lark-like syntax of llguidance.
        json_object: any JSON object.
        disable_any_whitespace: JSON has no spaces and line breaks but in its texts; some models prefer them for ever.

    Raises:
        TypeError, ValueError: none or several are given, or a value is of the wrong type, empty or no JSON.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        given = [form for form in FORMS if getattr(self, form) not in (None, False)]
        if len(given) != 1:
            raise ValueError(f"structured outputs need exactly one of {', '.join(FORMS)}, got {given or 'none'}")
        for form in ("regex", "grammar"):
            value = getattr(self, form)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{form} must be a text, got {value!r} of type {type(value).__name__}")
            if value == "":
                raise ValueError(f"{form} must not be empty")
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        if self.json is not None:
            object.__setattr__(self, "json", _schema(self.json))


def _choices(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"choice must be a list of texts, got {value!r}")
    for item in value:
        if not isinstance(item, str):
            raise TypeError(f"choice must hold texts only, got {item!r} of type {type(item).__name__}")
    if not value or "" in value:
        raise ValueError(f"choice must hold at least one text, and no empty one, got {value!r}")
    return tuple(value)


def _schema(value: object) -> str:
    if not isinstance(value, str | Mapping):
        raise TypeError(f"json must be a JSON schema as a mapping or a text, got {value!r}")
    try:
        return json_text.dumps(json_text.loads(value) if isinstance(value, str) else dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"json is no JSON schema: {error}") from error
