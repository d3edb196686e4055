"""Profiles as files: readable JSON, refused with a reason where it is not what was asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...files.bounded_json import brief, parse_json, read_text
from ...files.whole_file import whole_file
from .curve import AttentionTime, Curve
from .profile import Padding, Profile, ProfileKey

FORMAT = "apex_jax profile 1"


class ProfileError(ValueError):
    """A profile that cannot be used; the message says what is wrong with it."""


def save_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write a profile as JSON, making its folder if need be.

    The file appears whole or not at all, whoever else saves one there.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(encode(profile))


def load_profile(path: str | os.PathLike[str], key: ProfileKey | None = None) -> Profile:
    """Read a profile.

    Args:
        path: the file.
        key: what the profile must be valid for; None takes any.

    Raises:
        ProfileError: the file is not a whole profile, its values are nonsense, or it is valid for something else.
        OSError: it cannot be read.
    """
    try:
        profile = decode(read_text(path))
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: this is not text in UTF-8, let alone JSON: {error}") from error
    except ValueError as error:
        raise ProfileError(f"{path}: {brief(error)}") from error
    if key is not None and (differences := key.differences(profile.key)):
        raise ProfileError(f"{path} is a profile of something else: {'; '.join(differences)}")
    return profile


def encode(profile: Profile) -> str:
    """Return a profile as JSON, a line for each attribute."""
    values = {"format": FORMAT, **{field.name: _plain(getattr(profile, field.name)) for field in fields(profile)}}
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def decode(text: str) -> Profile:
    """Return the profile that `encode` wrote.

    Raises:
        ProfileError: the text is no such profile.
    """
    try:
        values = parse_json(text, once=True)
    except json.JSONDecodeError as error:
        raise ProfileError(f"this is not whole JSON: {error}") from error
    except ValueError as error:
        raise ProfileError(str(error)) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise ProfileError(f"format is {found!r}; {FORMAT!r} is needed")
    values.pop("format")
    _check_names("a profile", values, {field.name for field in fields(Profile)})
    read = {name: _read(name, value, READERS.get(name)) for name, value in values.items()}
    return _make(Profile, "a profile", read)


def _plain(value: Any) -> Any:
    if isinstance(value, Curve):
        return [list(point) for point in value.points]
    if isinstance(value, AttentionTime):
        return {"rows": _plain(value.rows), "tokens": _plain(value.tokens)}
    return asdict(value) if isinstance(value, ProfileKey | Padding) else value


def _read(name: str, value: Any, reader: Callable[[str, Any], Any] | None) -> Any:
    return value if reader is None else reader(name, value)


def _curve(name: str, value: Any) -> Curve:
    if not isinstance(value, list) or not all(isinstance(point, list) and len(point) == 2 for point in value):
        raise ProfileError(f"{name} must be a list of [count, seconds]")
    return _make(Curve, name, {"points": tuple((count, seconds) for count, seconds in value)})


def _attention(name: str, value: Any) -> AttentionTime:
    parts = _mapping(name, value, {"rows", "tokens"})
    return AttentionTime(rows=_curve(f"{name}.rows", parts["rows"]), tokens=_curve(f"{name}.tokens", parts["tokens"]))


def _key(name: str, value: Any) -> ProfileKey:
    return _make(ProfileKey, name, _mapping(name, value, {field.name for field in fields(ProfileKey)}))


def _padding(name: str, value: Any) -> Padding:
    sizes = _mapping(name, value, {field.name for field in fields(Padding)})
    for part, numbers in sizes.items():
        if not isinstance(numbers, list):
            raise ProfileError(f"{name}.{part} must be a list of sizes")
    return _make(Padding, name, {part: tuple(numbers) for part, numbers in sizes.items()})


def _mapping(name: str, value: Any, allowed: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProfileError(f"{name} must have the parts {sorted(allowed)}")
    _check_names(name, value, allowed)
    return value


def _check_names(name: str, values: Mapping[str, Any], allowed: set[str]) -> None:
    missing, unknown = sorted(allowed - values.keys()), sorted(values.keys() - allowed)
    found = ([f"lacks {missing}"] if missing else []) + ([f"has unknown {unknown}"] if unknown else [])
    if found:
        raise ProfileError(f"{name} {' and '.join(found)}")


def _make(kind: Callable[..., Any], name: str, values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValueError as error:
        raise ProfileError(f"{name}: {error}") from error


READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "key": _key,
    "padding": _padding,
    "device_attention": _attention,
    "host_attention": _attention,
    **dict.fromkeys(("layer", "head", "prefill_attention", "hop", "boarding", "migration"), _curve),
}
