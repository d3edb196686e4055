"""Rotary position embedding: its settings, its frequencies and its application.

The settings cover what LLaMA checkpoints use: `default`, `linear`, `llama3` and `yarn`. Frequencies are computed once,
in float32 steps in the order of the original implementation, so that angles at long positions equal those the model
was trained with; angles, cosines and sines are float32 whatever the dtype of the weights.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..files.bounded_json import listed, shown
from .loading import checks

_REQUIRED_OF_TYPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_OPTIONAL_OF_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
_FIELDS_OF_TYPE = _REQUIRED_OF_TYPE | {"yarn": _REQUIRED_OF_TYPE["yarn"] + _OPTIONAL_OF_YARN}
ROPE_TYPES = tuple(_FIELDS_OF_TYPE)
BETA_FAST, BETA_SLOW = 32.0, 1.0
"""Yarn's blended band where none is given, in turns over the original context."""

_LABELS = ("rope_type", "type", "rope_theta", "finetuned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """How positions turn queries and keys. Fields carry the names of a Hugging Face `config.json`.

    Args:
        rope_type: one of `ROPE_TYPES`.
        theta: base of the geometric series of wavelengths.
        factor: by how much the context is stretched (linear, llama3, yarn).
        low_freq_factor, high_freq_factor: limits of the blended band, in turns over the original context (llama3).
        original_max_position_embeddings: context before stretching, in tokens (llama3, yarn).
        beta_fast, beta_slow: limits of the blended band, in turns over the original context (yarn).
        attention_factor: multiplies cosines and sines; None computes it from `factor` (yarn).
        mscale, mscale_all_dim: how `attention_factor` is computed where it is None (yarn).
        truncate: round the blended band outwards to whole dimensions (yarn).
        frequency_factors: divisors of the H/2 frequencies, applied last; empty for none. GGUF files store llama3
            scaling in this form.

    Raises:
        ValueError: unknown type, a setting the type needs is missing, one that belongs to another type is given, or a
            value of the wrong type or out of range.
    """

    rope_type: str = "default"
    theta: float = 10_000.0
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    frequency_factors: tuple[float, ...] = ()

    def __post_init__(self):
        if self.rope_type not in ROPE_TYPES:
            raise ValueError(
                f"RoPE type {shown(self.rope_type)} is not implemented; implemented: {', '.join(ROPE_TYPES)}"
            )
        missing = [name for name in _REQUIRED_OF_TYPE[self.rope_type] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"RoPE type {self.rope_type!r} needs {', '.join(missing)}")
        known = ("rope_type", "theta", "frequency_factors", *_FIELDS_OF_TYPE[self.rope_type])
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in known and value is not None:
                raise ValueError(f"RoPE type {self.rope_type!r} has no setting {field.name} (got {shown(value)})")
        self._check_values()

    def _check_values(self) -> None:
        numbers = ("theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        for name in (*numbers, "attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                # A scale of 0 says in published files that it is not used.
                checks.number(f"RoPE {name}", getattr(self, name), zero=name.startswith("mscale"))
        if self.theta <= 1:
            raise ValueError(f"RoPE theta must be above 1, got {self.theta}")
        if self.factor is not None and self.factor < 1:
            raise ValueError(f"RoPE factor must be at least 1, got {self.factor}")
        if self.original_max_position_embeddings is not None:
            checks.integer("RoPE original_max_position_embeddings", self.original_max_position_embeddings)
        if self.truncate is not None:
            checks.truth("RoPE truncate", self.truncate)
        bands = (
            ("low_freq_factor", self.low_freq_factor, "high_freq_factor", self.high_freq_factor),
            ("beta_slow", self.beta_slow or BETA_SLOW, "beta_fast", self.beta_fast or BETA_FAST),
        )
        for low_name, low, high_name, high in bands:
            if low is not None and high is not None and low >= high:
                raise ValueError(f"RoPE {low_name} must be below {high_name}, got {low} and {high}")
        for factor in self.frequency_factors:
            checks.number("every one of RoPE frequency_factors", factor)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "RopeConfig":
        """Read the settings from a `config.json`, in either form.

        Transformers 5 writes one mapping `rope_parameters`; older files hold `rope_theta` and `rope_scaling`. Where
        both stand, `rope_scaling` wins, and a theta inside the mapping wins over one outside, as in transformers.

        Raises:
            ValueError: an unknown type, or a setting that is not implemented, by name.
        """
        settings = dict(_settings(config))
        rope_type = settings.get("rope_type", settings.get("type")) or "default"
        if rope_type not in ROPE_TYPES:
            raise ValueError(f"RoPE type {shown(rope_type)} is not implemented; implemented: {', '.join(ROPE_TYPES)}")
        theta = _first(settings.get("rope_theta"), config.get("rope_theta"), 10_000.0)
        rotated = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if rotated not in (None, 1, 1.0):
            raise ValueError(f"RoPE partial_rotary_factor {shown(rotated)} is not implemented, only 1")
        settings.pop("partial_rotary_factor", None)
        for label in _LABELS:
            settings.pop(label, None)
        if rope_type == "default" and settings.get("factor") in (1, 1.0):
            del settings["factor"]
        unknown = sorted(set(settings) - {name for names in _FIELDS_OF_TYPE.values() for name in names})
        if unknown:
            raise ValueError(f"RoPE settings not implemented: {listed(unknown)}")

        longest = checks.integer("max_position_embeddings", _first(config.get("max_position_embeddings"), 2048))
        if "original_max_position_embeddings" in _FIELDS_OF_TYPE[rope_type]:
            inner = settings.get("original_max_position_embeddings")
            settings["original_max_position_embeddings"] = checks.integer(
                "original_max_position_embeddings",
                _first(config.get("original_max_position_embeddings"), inner, longest),
            )
        if rope_type == "yarn" and settings.get("factor") is None:
            settings["factor"] = longest / settings["original_max_position_embeddings"]
        return cls(rope_type=rope_type, theta=checks.number("rope_theta", theta), **settings)

    @property
    def attention_scaling(self) -> float:
        """Factor on cosines and sines: 1 except for yarn (arXiv 2309.00071, section 3.4)."""
        if self.rope_type != "yarn" or self.factor is None:
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor

        def scale(mscale: float) -> float:
            return 1.0 if self.factor is None or self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return scale(self.mscale) / scale(self.mscale_all_dim)
        return scale(1.0)


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("rope_scaling", "rope_parameters"):
        if config.get(name) is not None and checks.mapping(name, config[name]):
            return config[name]
    return {}


def _first(*values: Any) -> Any:
    """Return the first value that is given."""
    return next(value for value in values if value is not None)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Return the float32 [H/2] angles a position advances by, in radians a token."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base_frequencies = np.power(rope.theta, exponent.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / base_frequencies
    if rope.rope_type == "linear":
        frequencies = frequencies / np.float32(rope.factor)
    elif rope.rope_type == "llama3":
        frequencies = _llama3(rope, frequencies)
    elif rope.rope_type == "yarn":
        frequencies = _yarn(rope, base_frequencies, head_dim)
    if rope.frequency_factors:
        if len(rope.frequency_factors) != head_dim // 2:
            raise ValueError(
                f"RoPE needs {head_dim // 2} frequency factors for heads of width {head_dim}, "
                f"got {len(rope.frequency_factors)}"
            )
        frequencies = frequencies / np.asarray(rope.frequency_factors, np.float32)
    return frequencies.astype(np.float32)


def _llama3(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    """Slow the long wavelengths by `factor`, keep the short ones, blend in between (Llama 3.1's own code)."""
    assert rope.factor is not None
    assert rope.low_freq_factor is not None
    assert rope.high_freq_factor is not None
    assert rope.original_max_position_embeddings is not None
    context = rope.original_max_position_embeddings
    wavelengths = np.float32(2 * math.pi) / frequencies
    turns = np.float32(context) / wavelengths
    blend = (turns - np.float32(rope.low_freq_factor)) / np.float32(rope.high_freq_factor - rope.low_freq_factor)
    slowed = frequencies / np.float32(rope.factor)
    blended = (1 - blend) * slowed + blend * frequencies
    result = np.where(wavelengths > context / rope.low_freq_factor, slowed, blended)
    return np.where(wavelengths < context / rope.high_freq_factor, frequencies, result)


def _yarn(rope: RopeConfig, base_frequencies: np.ndarray, head_dim: int) -> np.ndarray:
    """Interpolate the slow dimensions, keep the fast ones, ramp in between (arXiv 2309.00071, section 3.2)."""
    assert rope.factor is not None
    assert rope.original_max_position_embeddings is not None
    context = rope.original_max_position_embeddings

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast or BETA_FAST), dimension_of(rope.beta_slow or BETA_SLOW)
    if rope.truncate is None or rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    interpolated = np.float32(1.0) / (np.float32(rope.factor) * base_frequencies)
    return interpolated * ramp + (np.float32(1.0) / base_frequencies) * (1 - ramp)


def rotation(rope: RopeConfig, head_dim: int, positions: jax.Array) -> jax.Array:
    """Return the cosines and sines by which heads at these positions turn; the same in every layer, so computed once.

    Args:
        positions: int32 [T], from 0.

    Returns:
        float32 [T, 2, H/2]: cosine and sine of each pair's angle, with the scaling that yarn puts on them.
    """
    frequencies = jnp.asarray(inverse_frequencies(rope, head_dim))
    angles = positions.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1) * jnp.float32(rope.attention_scaling)


def rotate(heads: jax.Array, turn: jax.Array) -> jax.Array:
    """Turn each head by its position's angles: pairs are dimension i and i + H/2, as in Hugging Face checkpoints.

    Args:
        heads: float32 [T, heads, H].
        turn: float32 [T, 2, H/2], of `rotation`.

    Returns:
        float32 [T, heads, H].
    """
    half = heads.shape[-1] // 2
    cos, sin = turn[:, :1], turn[:, 1:]
    first, second = heads[..., :half], heads[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
