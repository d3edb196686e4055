"""Choosing the next tokens, inside the compiled program.

The order is vLLM's: allowed and banned tokens, biases, then repetition, frequency and presence penalties on the model's
logits, temperature, min-p, top-k, top-p, draw; logprobs are those of the model's own distribution. Every filter keeps
the tokens whose probability is at or above some floor, so a filter is one float a row and nothing is ever sorted.
Tokens of equal float32 probability stay or go together (in vLLM, top-p splits them).

A row's token depends on its own logits, parameters, seed and step alone. There is no data-dependent control flow: on
a GPU a `cond` or an open-ended `while` makes the dispatching thread wait for the device.

What decided the forms (XLA CPU of JAX 0.10.2, 2 Zen 4 cores, 16 rows; milliseconds at V = 49,152 and 128,256):

    greedy   jnp.argmax                             3.7    4.6
             first index of the maximum             0.5    1.3
    draw     Gumbel noise by threefry               8.0   22.5
             inverse CDF                            2.5    5.1
             inverse CDF in two levels              0.6    1.0
    floor    sort                                 154    420
             lax.top_k(1024)                        7.6   10.3
             bisection of the floor's 30 bits       4.4   12     (top-k; top-p the same again)
             bisection, two bits a pass             8.0   29-40
    sample   greedy                                 0.5    1.0
             sampled                                0.8    2
             with filters, or with penalties        8     16-22
             logprobs, in addition                  1.5-2  4
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..sampling_params import GREEDY_BELOW, MAX_LOGPROBS, SamplingParams
from .logit_edits import LogitEdits, is_allowed

INVALID_TOKEN = -1
"""Drawn where a row has no distribution: its greatest logit is NaN or infinite. The host must end that request."""

NO_TOKEN = -2
"""The same where the model's logits are as they should be, and what the request asks for leaves none."""

MAX_BANNED = 64
"""The most tokens (EOS and stop tokens) a row can be forbidden until its `min_tokens`."""

NOT_BANNED = 2**31 - 1
"""Fills the unused places of `SamplingRows.banned`."""

_CHUNK = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingMode:
    """What a batch needs, known when compiling; a batch may run in any mode that covers its rows.

    Attributes:
        sampled: some row has a temperature; without it a row costs its argmax.
        filters: some row has top-k or top-p; needs `sampled`.
        penalties: some row has a repetition penalty or min_tokens; needs `filters`, so that there are few modes.
        logprobs: some row wants logprobs.
        edits: some row has `LogitEdits`; needs all of the others, so that this is one mode.
    """

    sampled: bool = False
    filters: bool = False
    penalties: bool = False
    logprobs: bool = False
    edits: bool = False

    def __post_init__(self) -> None:
        if self.edits and not (self.penalties and self.logprobs):
            raise ValueError(f"edits needs penalties and logprobs, got {self}")
        if (self.filters and not self.sampled) or (self.penalties and not self.filters):
            raise ValueError(f"filters needs sampled and penalties needs filters, got {self}")

    @classmethod
    def covering(cls, batch: Iterable[SamplingParams]) -> "SamplingMode":
        """Return the cheapest mode for these requests."""
        batch = list(batch)
        penalties = any(p.repetition_penalty != 1 or p.min_tokens > 0 or p.edits_logits for p in batch)
        edits = penalties and any(p.edits_logits for p in batch)
        filters = penalties or any(not p.greedy and (p.top_k > 0 or p.top_p < 1) for p in batch)
        return cls(
            sampled=filters or any(not p.greedy for p in batch),
            filters=filters,
            penalties=penalties,
            logprobs=edits or any(p.logprobs is not None for p in batch),
            edits=edits,
        )


MODES = (
    *(
        SamplingMode(sampled=level > 0, filters=level > 1, penalties=level > 2, logprobs=logprobs)
        for level in range(4)
        for logprobs in (False, True)
    ),
    SamplingMode(sampled=True, filters=True, penalties=True, logprobs=True, edits=True),
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
        edits: None unless the mode has edits.
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
    edits: LogitEdits | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """What `sample` chose. All but `tokens` is None unless the mode has logprobs; T is min(MAX_LOGPROBS, V).

    Attributes:
        tokens: int32 [B]; INVALID_TOKEN or NO_TOKEN where a row has no distribution.
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


def sample(logits: Array, rows: SamplingRows | None, *, mode: SamplingMode) -> Sampled:
    """Choose one token a row.

    Args:
        logits: float32 [B, V], of the model.
        rows: parameters of the B rows; None will do for a mode without `sampled`.
        mode: must cover all rows (`SamplingMode.covering`); what it leaves out is not applied.
    """
    if not mode.sampled:
        tokens = _greedy(logits)
    elif rows is None:
        raise ValueError(f"rows must be given in a mode with sampled, got None for {mode}")
    else:
        tokens = _draw(logits, rows, mode)
    return _with_logprobs(logits, tokens) if mode.logprobs else Sampled(tokens=tokens)


def token_weights(logits: Array, rows: SamplingRows, *, mode: SamplingMode) -> Array:
    """Return float32 [B, V] in [0, 1], what `sample` draws each token in proportion to; 0 where a filter drops it.

    Greedy rows have 1 at each greatest logit, of which `sample` takes the first. Arguments as for `sample`.
    """
    adjusted = _adjust(logits, rows, mode)
    return _weights(adjusted, _peak(adjusted), rows, mode)


def _adjust(logits: Array, rows: SamplingRows, mode: SamplingMode) -> Array:
    """Return logits with biases and penalties, and without the tokens that are banned or not allowed."""
    if not mode.penalties:
        return logits
    edits = rows.edits if mode.edits else None
    if mode.edits and edits is None:
        raise ValueError("a mode with edits needs rows.edits, got None")
    if edits is not None:
        logits = logits + edits.added[0]
    if rows.seen is None:
        raise ValueError("a mode with penalties needs rows.seen, got None")
    penalty = rows.repetition_penalty[:, None]
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(rows.seen, penalised, logits)
    if edits is not None:
        logits = jnp.where(is_allowed(edits.allowed, logits.shape[1]), logits - edits.added[1], -jnp.inf)
    banned = jnp.where((rows.step < rows.min_tokens)[:, None], rows.banned, NOT_BANNED)
    return logits.at[jnp.arange(logits.shape[0])[:, None], banned].set(-jnp.inf, mode="drop")


def _peak(logits: Array) -> Array:
    """Return float32 [B], the greatest logit of each row; infinite if one is NaN (XLA's maximum may skip a NaN)."""
    return jnp.where(jnp.isnan(logits), jnp.inf, logits).max(-1)


def _greedy(logits: Array) -> Array:
    """Return int32 [B], the first of each row's greatest logits, or INVALID_TOKEN."""
    peak = _peak(logits)
    return jnp.where(jnp.isfinite(peak), _first(logits == peak[:, None]), INVALID_TOKEN)


def _draw(logits: Array, rows: SamplingRows, mode: SamplingMode) -> Array:
    """Return int32 [B], a token of each row's `token_weights`, INVALID_TOKEN or NO_TOKEN."""
    adjusted = _adjust(logits, rows, mode)
    peak = _peak(adjusted)
    # The barrier makes both levels of the draw see the same rounding of the weights.
    weight = lax.optimization_barrier(_weights(adjusted, peak, rows, mode))
    greedy = (rows.temperature < GREEDY_BELOW)[:, None]
    tokens = _inverse_cdf(weight, jnp.where(greedy, 0.0, _uniforms(rows.seed, rows.step)))
    if not mode.penalties:
        return jnp.where(jnp.isfinite(peak), tokens, INVALID_TOKEN)
    none = jnp.where(jnp.isfinite(_peak(logits)), NO_TOKEN, INVALID_TOKEN)
    return jnp.where(jnp.isfinite(peak), tokens, none)


def _first(mask: Array) -> Array:
    """Return int32 [B], the first true index of each row of bool [B, X]; X where there is none.

    XLA's argmax is a reduction over pairs, which its CPU compiler does not vectorise.
    """
    size = mask.shape[1]
    return jnp.where(mask, lax.broadcasted_iota(jnp.int32, mask.shape, 1), size).min(-1)


def _weights(logits: Array, peak: Array, rows: SamplingRows, mode: SamplingMode) -> Array:
    """Return float32 [B, V], `token_weights` of adjusted logits whose greatest is `peak` float32 [B]."""
    greedy = (rows.temperature < GREEDY_BELOW)[:, None]
    temperature = jnp.where(greedy, 1.0, rows.temperature[:, None])
    # Relative to the peak nothing overflows, however small the temperature.
    weight = jnp.exp((logits - peak[:, None]) / temperature)
    weight = jnp.where(greedy, (logits == peak[:, None]).astype(jnp.float32), weight)
    floor = _floor(weight, rows) if mode.filters else rows.min_p
    return jnp.where(weight >= floor[:, None], weight, 0.0)


def _floor(weight: Array, rows: SamplingRows) -> Array:
    """Return float32 [B], the least weight that min-p, then top-k, then top-p keep, of float32 [B, V] in [0, 1]."""

    def count(floor: Array) -> Array:
        return (weight >= floor[:, None]).astype(jnp.int32).sum(-1)

    def mass(floor: Array) -> Array:
        return jnp.where(weight >= floor[:, None], weight, 0.0).sum(-1)

    by_count = _greatest_floor(lambda floor: count(floor) >= rows.top_k, rows.top_k.shape)
    floor = jnp.maximum(rows.min_p, jnp.where(rows.top_k > 0, by_count, 0.0))
    wanted = rows.top_p * mass(floor)
    by_mass = _greatest_floor(lambda floor: mass(floor) >= wanted, rows.top_p.shape)
    return jnp.maximum(floor, jnp.where(rows.top_p < 1, by_mass, 0.0))


def _greatest_floor(enough: Callable[[Array], Array], shape: tuple[int, ...]) -> Array:
    """Return the greatest float32 in [0, 1] of each row for which `enough` holds, true up to some floor; 0 if never.

    Floats that are not negative order like their bits, so each pass settles one bit, exactly.
    """

    def settle_bit(step: Array, bits: Array) -> Array:
        candidate = bits | (jnp.int32(1) << (29 - step))
        return jnp.where(enough(lax.bitcast_convert_type(candidate, jnp.float32)), candidate, bits)

    bits = lax.fori_loop(0, 30, settle_bit, jnp.zeros(shape, jnp.int32))
    return jnp.minimum(lax.bitcast_convert_type(bits, jnp.float32), 1.0)


def _uniforms(seed: Array, step: Array) -> Array:
    """Return float32 [B, 2] in [0, 1), a function of each row's seed and step alone.

    Folding the step into the key is one block of threefry in counter mode: its two words are the random bits.
    """

    def one(words: Array, count: Array) -> Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), count))

    return (jax.vmap(one)(seed, step) >> 8).astype(jnp.float32) * 2.0**-24


def _inverse_cdf(weight: Array, uniform: Array) -> Array:
    """Return int32 [B], an index drawn by float32 [B, V] with two uniforms a row: first a chunk, then an index in it.

    In two levels because a sum over chunks vectorises and a running sum over the vocabulary does not; and a
    probability is resolved to 2**-24 of its chunk, not of the whole.
    """
    size = weight.shape[1]
    chunks = -(-size // _CHUNK)
    padded = jnp.pad(weight, ((0, 0), (0, chunks * _CHUNK - size))).reshape(-1, chunks, _CHUNK)
    chunk = _pick(padded.sum(-1), uniform[:, 0])
    inside = jnp.take_along_axis(padded, chunk[:, None, None], axis=1)[:, 0]
    return chunk * _CHUNK + _pick(inside, uniform[:, 1])


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
