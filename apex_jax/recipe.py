"""How an `LLM` was made, which is what is left of it in a pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an `LLM` was called with.

    Attributes:
        model: as it was named; None where its weights were given as arrays.
        arguments: all others, by name.
    """

    model: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def reduced(self, made: Callable[..., Any]) -> tuple[Any, ...]:
        """Return what `pickle` keeps of an object that `made` returned.

        Raises:
            TypeError: its weights were given as arrays.
        """
        if self.model is None:
            raise TypeError(
                "an LLM whose weights came from params (from_params, update_params) cannot be pickled: send the "
                "configuration, the params (as numpy arrays: jax.device_get) and the options, and call "
                "LLM.from_params there"
            )
        device = self.arguments.get("device")
        place = None if device is None else (device.platform, device.id)
        return _make, (made, self.model, {**self.arguments, "device": None}, place)


FROM_PARAMS = Recipe(model=None)


def _make(made: Callable[..., Any], model: str, arguments: dict[str, Any], place: tuple[str, int] | None) -> Any:
    device = None
    if place is not None:
        platform, number = place
        found = jax.devices(platform)
        device = next((each for each in found if each.id == number), None)
        if device is None:
            raise ValueError(f"the LLM ran on {platform}:{number}; here are {', '.join(map(str, found))}")
    return made(model, **{**arguments, "device": device})
