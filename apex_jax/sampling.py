"""Choosing the next tokens, inside the compiled program.

The order is vLLM's: banned tokens and repetition penalty on the model's logits, temperature, min-p, top-k, top-p, draw;
logprobs are those of the model's own distribution. Every filter keeps the tokens at or above some logit, so a filter is
one threshold a row and nothing is ever sorted. Tokens of equal logit stay or go together (in vLLM, top-p splits them).

A row's token depends on its own logits, parameters, seed and step alone. There is no data-dependent control flow: on
a GPU a `cond` or an open-ended `while` makes the dispatching thread wait for the device.

What decided the forms (2 Zen 4 cores, JAX 0.10.2, XLA CPU, 16 rows, ms a call, V = 49,152 / 128,256):

    greedy       jnp.argmax 3.7 / 4.6                      first index of the maximum 0.5 / 1.3
    draw         Gumbel noise by threefry 8.0 / 22.5       inverse CDF, flat 2.5 / 5.1, in two levels 0.6 / 1.0
    threshold    sort 154 / 420, top_k(1024) 7.6 / 10.3    bisection of the logit's bits, 31 passes:
                                                           top-k 3.1 / 8.0, top-p 4.4 / 11.4
                 (two bits in 16 passes: 8.0 / 39.6)
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .sampling_params import GREEDY_BELOW, MAX_LOGPROBS, SamplingParams

INVALID_TOKEN = -1
"""Drawn where a row has no distribution: its greatest logit is NaN or infinite. The host must end that request."""

MAX_BANNED = 64
"""The most tokens (EOS and stop tokens) a row can be forbidden until its `min_tokens`."""

NOT_BANNED = 2**31 - 1
"""Fills the unused places of `SamplingRows.banned`."""

_CHUNK = 256
_KEEP_ALL = np.int32(2**31 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingMode:
    """What a batch needs, known when compiling; a batch may run in any mode that covers its rows.

    Attributes:
        sampled: some row has a temperature; without it a row costs its argmax.
        filters: some row has top-k or top-p; needs `sampled`.
        penalties: some row has a repetition penalty or min_tokens; needs `filters`, so that there are few modes.
        logprobs: some row wants logprobs.
    """

    sampled: bool = False
    filters: bool = False
    penalties: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        if (self.filters and not self.sampled) or (self.penalties and not self.filters):
            raise ValueError(f"filters needs sampled and penalties needs filters, got {self}")

    @classmethod
    def covering(cls, batch: Iterable[SamplingParams]) -> "SamplingMode":
        """Return the cheapest mode for these requests."""
        batch = list(batch)
        penalties = any(p.repetition_penalty != 1 or p.min_tokens > 0 for p in batch)
        filters = penalties or any(not p.greedy and (p.top_k > 0 or p.top_p < 1) for p in batch)
        return cls(
            sampled=filters or any(not p.greedy for p in batch),
            filters=filters,
            penalties=penalties,
            logprobs=any(p.logprobs is not None for p in batch),
        )


MODES = tuple(
    SamplingMode(sampled=level > 0, filters=level > 1, penalties=level > 2, logprobs=logprobs)
    for level in range(4)
    for logprobs in (False, True)
)
"""Every mode there is."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingRows:
    """The sampling parameters of B rows.

    Attributes:
        temperature: float32 [B]; below 1e-5 is greedy.
        top_k: int32 [B]; 0 or less keeps all.
        top_p: float32 [B]; 1 keeps all.
        min_p: float32 [B]; 0 keeps all.
        repetition_penalty: float32 [B]; 1 changes nothing.
        seed: uint32 [B, 2], of `seed_words`.
        step: int32 [B]; how many tokens the request has generated before this one.
        min_tokens: int32 [B]; `banned` holds while `step` is below it.
        banned: int32 [B, MAX_BANNED]; token ids, then NOT_BANNED.
        seen: bool [B, V]; tokens of prompt and output; None unless the mode has penalties.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array
    seed: Array
    step: Array
    min_tokens: Array
    banned: Array
    seen: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """What `sample` chose. All but `tokens` is None unless the mode has logprobs; T is min(MAX_LOGPROBS, V).

    Attributes:
        tokens: int32 [B]; INVALID_TOKEN where a row has no distribution.
        logprob: float32 [B], of the chosen token in the model's own distribution; NaN where there is none.
        rank: int32 [B]; one more than the tokens with a greater logit than the chosen one.
        top_ids: int32 [B, T], most probable first.
        top_logprobs: float32 [B, T].
    """

    tokens: Array
    logprob: Array | None = None
    rank: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None


def seed_words(seed: int, sample_index: int) -> np.ndarray:
    """Return uint32 [2], the seed of the `sample_index`-th of a request's `n` completions; on the host.

    Raises:
        ValueError: either is negative.
    """
    return np.random.SeedSequence(seed, spawn_key=(sample_index,)).generate_state(2, np.uint32)


def pack_rows(
    requests: Sequence[tuple[SamplingParams, np.ndarray, int] | None], *, eos_token_ids: Sequence[int]
) -> SamplingRows:
    """Return the rows (numpy arrays, without `seen`) of (params, seed words, step); None is a padding row (greedy).

    Raises:
        ValueError: as `banned_tokens`.
    """
    size = len(requests)
    columns: dict[str, Any] = {
        "temperature": np.zeros(size, np.float32),
        "top_k": np.zeros(size, np.int32),
        "top_p": np.ones(size, np.float32),
        "min_p": np.zeros(size, np.float32),
        "repetition_penalty": np.ones(size, np.float32),
        "min_tokens": np.zeros(size, np.int32),
    }
    seed, step = np.zeros((size, 2), np.uint32), np.zeros(size, np.int32)
    banned = np.full((size, MAX_BANNED), NOT_BANNED, np.int32)
    for row, request in enumerate(requests):
        if request is None:
            continue
        params, seed[row], step[row] = request
        for name, column in columns.items():
            column[row] = getattr(params, name)
        if params.min_tokens > 0:
            ids = banned_tokens(params, eos_token_ids)
            banned[row, : len(ids)] = ids
    return SamplingRows(**columns, seed=cast(Array, seed), step=cast(Array, step), banned=cast(Array, banned))


def banned_tokens(params: SamplingParams, eos_token_ids: Sequence[int]) -> list[int]:
    """Return the tokens that must not be drawn before `params.min_tokens`; on the host.

    Raises:
        ValueError: there are more than MAX_BANNED.
    """
    ids = sorted({*eos_token_ids, *(params.stop_token_ids or ())})
    if len(ids) > MAX_BANNED:
        raise ValueError(f"min_tokens allows at most {MAX_BANNED} EOS and stop tokens together, got {len(ids)}")
    return ids


def mark_seen(seen: Array, tokens: Array) -> Array:
    """Return `seen` bool [B, V] with each row's `tokens` int32 [B, T] marked, but for ids outside the vocabulary."""
    rows = jnp.arange(seen.shape[0])[:, None]
    return seen.at[rows, jnp.where(tokens < 0, NOT_BANNED, tokens)].set(True, mode="drop")


def sample(logits: Array, rows: SamplingRows, *, mode: SamplingMode) -> Sampled:
    """Choose one token a row.

    Args:
        logits: float32 [B, V], of the model.
        rows: parameters of the B rows.
        mode: must cover all rows (`SamplingMode.covering`); what it leaves out is not applied.
    """
    adjusted = _adjust(logits, rows) if mode.penalties else logits
    # XLA's maximum may skip a NaN; infinity is not skipped.
    peak = jnp.where(jnp.isnan(adjusted), jnp.inf, adjusted).max(-1)
    tokens = _draw(adjusted, peak, rows, mode) if mode.sampled else _first(adjusted == peak[:, None])
    tokens = jnp.where(jnp.isfinite(peak), tokens, INVALID_TOKEN)
    return _with_logprobs(logits, tokens) if mode.logprobs else Sampled(tokens=tokens)


def _adjust(logits: Array, rows: SamplingRows) -> Array:
    """Return logits with the repetition penalty and without the banned tokens."""
    if rows.seen is None:
        raise ValueError("a mode with penalties needs rows.seen, got None")
    penalty = rows.repetition_penalty[:, None]
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(rows.seen, penalised, logits)
    banned = jnp.where((rows.step < rows.min_tokens)[:, None], rows.banned, NOT_BANNED)
    return logits.at[jnp.arange(logits.shape[0])[:, None], banned].set(-jnp.inf, mode="drop")


def _first(mask: Array) -> Array:
    """Return int32 [B], the first true index of each row of bool [B, X]; X where there is none.

    XLA's argmax is a reduction over pairs, which its CPU compiler does not vectorise.
    """
    size = mask.shape[1]
    return jnp.where(mask, lax.broadcasted_iota(jnp.int32, mask.shape, 1), size).min(-1)


def _draw(logits: Array, peak: Array, rows: SamplingRows, mode: SamplingMode) -> Array:
    """Return int32 [B], a token drawn from each row's filtered distribution; the first of the greatest if greedy."""
    greedy = rows.temperature < GREEDY_BELOW
    temperature = jnp.where(greedy, 1.0, rows.temperature)
    # Distance below the peak: never negative, so its bits compare like integers, and never overflows.
    distance = (peak[:, None] - logits) / temperature[:, None]
    threshold = _key(-jnp.log(rows.min_p))
    if mode.filters:
        threshold = _top_k_top_p(distance, threshold, rows.top_k, rows.top_p)
    threshold = jnp.where(greedy, 0, threshold)
    uniform = jnp.where(greedy[:, None], 0.0, _uniforms(rows.seed, rows.step))
    return _inverse_cdf(distance, threshold, uniform)


def _key(distance: Array) -> Array:
    """Return int32 that orders like these non-negative floats."""
    return lax.bitcast_convert_type(jnp.abs(distance), jnp.int32)


def _top_k_top_p(distance: Array, threshold: Array, top_k: Array, top_p: Array) -> Array:
    """Return int32 [B], the greatest key kept by top-k, then top-p, among those that `threshold` keeps."""
    key, weight = _key(distance), jnp.exp(-distance)

    def count(bound: Array) -> Array:
        return (key <= bound[:, None]).astype(jnp.int32).sum(-1)

    def mass(bound: Array) -> Array:
        return jnp.where(key <= bound[:, None], weight, 0.0).sum(-1)

    by_count = _least_key(lambda bound: count(bound) >= top_k, top_k.shape)
    threshold = jnp.minimum(threshold, jnp.where(top_k > 0, by_count, _KEEP_ALL))
    wanted = top_p * mass(threshold)
    by_mass = _least_key(lambda bound: mass(bound) >= wanted, top_p.shape)
    return jnp.minimum(threshold, jnp.where(top_p < 1, by_mass, _KEEP_ALL))


def _least_key(enough: Callable[[Array], Array], shape: tuple[int, ...]) -> Array:
    """Return the least int32 key of each row for which the monotone `enough` holds; the greatest int32 where none."""

    def settle_bit(step: Array, key: Array) -> Array:
        bit = jnp.int32(1) << (30 - step)
        return jnp.where(enough(key | (bit - 1)), key, key | bit)

    return lax.fori_loop(0, 31, settle_bit, jnp.zeros(shape, jnp.int32))


def _uniforms(seed: Array, step: Array) -> Array:
    """Return float32 [B, 2] in [0, 1), a function of each row's seed and step alone.

    Folding the step into the key is one block of threefry in counter mode: its two words are the random bits.
    """

    def one(words: Array, count: Array) -> Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), count))

    return (jax.vmap(one)(seed, step) >> 8).astype(jnp.float32) * 2.0**-24


def _inverse_cdf(distance: Array, threshold: Array, uniform: Array) -> Array:
    """Return int32 [B], drawn with weights exp(-distance) of the kept tokens: first a chunk, then a token in it.

    Two levels, because a sum over chunks vectorises and a running sum over the vocabulary does not; and a token's
    probability is resolved to 2**-24 of its chunk, not of the whole.
    """
    size = distance.shape[1]
    chunks = -(-size // _CHUNK)

    def weigh(distance: Array) -> Array:
        return jnp.where(_key(distance) <= threshold[:, None], jnp.exp(-distance), 0.0)

    weight = jnp.pad(weigh(distance), ((0, 0), (0, chunks * _CHUNK - size)))
    chunk = _pick(weight.reshape(-1, chunks, _CHUNK).sum(-1), uniform[:, 0])
    index = chunk[:, None] * _CHUNK + jnp.arange(_CHUNK)
    inside = weigh(jnp.take_along_axis(distance, jnp.minimum(index, size - 1), axis=1))
    return chunk * _CHUNK + _pick(jnp.where(index < size, inside, 0.0), uniform[:, 1])


def _pick(weight: Array, uniform: Array) -> Array:
    """Return int32 [B], the first index whose running sum of float32 [B, X] exceeds the uniform share of the total.

    Never an index of weight zero, whatever the rounding of the running sum, unless all are zero.
    """
    running = jnp.cumsum(weight, axis=-1)
    chosen = _first((running > (uniform * running[:, -1])[:, None]) & (weight > 0))
    return jnp.where(chosen < weight.shape[1], chosen, jnp.argmax(weight, axis=-1).astype(jnp.int32))


def _with_logprobs(logits: Array, tokens: Array) -> Sampled:
    """Return the tokens with their logprobs and the row's top ones, of float32 [B, V] before any adjustment."""
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, jnp.maximum(tokens, 0)[:, None], axis=1)
    top, top_ids = lax.top_k(logits, min(MAX_LOGPROBS, logits.shape[1]))
    return Sampled(
        tokens=tokens,
        logprob=jnp.where(tokens < 0, jnp.nan, (chosen - total)[:, 0]),
        rank=1 + (logits > chosen).astype(jnp.int32).sum(-1),
        top_ids=top_ids,
        top_logprobs=top - total,
    )
