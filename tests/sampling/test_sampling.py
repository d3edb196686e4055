"""`sample` against numpy in float64: kept tokens, distribution, random numbers, logprobs, independence of rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apex_jax.execution.logit_edits import (
    ENTRIES,
    LogitEdits,
    RowEdits,
    pack_allowed,
    pack_entries,
    pack_tokens,
    spread,
)
from apex_jax.execution.sampler import (
    INVALID_TOKEN,
    MAX_BANNED,
    MODES,
    NO_TOKEN,
    SamplingMode,
    pack_rows,
    sample,
    seed_words,
    token_weights,
)
from apex_jax.sampling_params import SamplingParams
from apex_jax.structured_outputs import StructuredOutputsParams

EVERYTHING = MODES[-1]
EOS = (7,)


@functools.cache
def compiled(function, mode):
    return jax.jit(functools.partial(function, mode=mode))


def edits_of(rows, shape):
    """Return `LogitEdits` of a batch [B, V]; `rows` are the edits of its first rows."""
    added = None
    for places, values in pack_entries(rows, shape[0]):
        added = spread(added, places, values, count=shape[0], vocab_size=shape[1])
    return LogitEdits(allowed=pack_allowed(rows, *shape), added=added)


def run(function, mode, logits, requests, seen=None, edits=()):
    """Call `function` on rows of (params, seed words, step), all arrays returned as numpy."""
    rows = pack_rows(requests, eos_token_ids=EOS)
    if mode.penalties:
        rows = dataclasses.replace(rows, seen=np.zeros(logits.shape, bool) if seen is None else seen)
    if mode.edits:
        rows = dataclasses.replace(rows, edits=edits_of(edits, logits.shape))
    return jax.tree.map(np.asarray, compiled(function, mode)(logits.astype(np.float32), rows))


def reference(logits, params, *, seen=(), step=0):
    """Return float64 probabilities of the tokens that the filters keep, and how near top-p came to a rounding."""
    logits = logits.astype(np.float64).copy()
    for token in seen:
        penalty = params.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    if step < params.min_tokens:
        logits[[*EOS, *(params.stop_token_ids or ())]] = -np.inf
    if params.greedy:
        return (logits == logits.max()) / (logits == logits.max()).sum(), np.inf
    with np.errstate(under="ignore"):
        probabilities = np.exp((logits - logits.max()) / params.temperature)
    probabilities /= probabilities.sum()
    probabilities[probabilities < params.min_p * probabilities.max()] = 0
    if params.top_k > 0:
        kth = np.sort(probabilities)[::-1][min(params.top_k, len(logits)) - 1]
        probabilities[probabilities < kth] = 0
    probabilities /= probabilities.sum()
    margin = np.inf
    if params.top_p < 1:
        values = np.unique(probabilities)[::-1]
        before = np.array([probabilities[probabilities > value].sum() for value in values])
        margin = np.abs(before - params.top_p).min()
        probabilities[np.isin(probabilities, values[before >= params.top_p])] = 0
        probabilities /= probabilities.sum()
    return probabilities, margin


@st.composite
def filtered_request(draw, vocabulary):
    # Logits on a grid: equal ones are equal in any precision, others differ by far more than rounding.
    grid = draw(st.sampled_from([1, 4, 64]))
    steps = draw(st.lists(st.integers(-6 * grid, 6 * grid), min_size=vocabulary, max_size=vocabulary))
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.25, 0.7, 1.0, 1.5, 20.0])),
        top_k=draw(st.sampled_from([-1, 0, 1, 2, 3, 7, vocabulary, vocabulary + 9])),
        top_p=draw(st.sampled_from([1e-30, 0.1, 0.3, 0.5, 0.9, 0.999, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.03, 0.2, 0.61])),
        repetition_penalty=draw(st.sampled_from([1.0, 0.5, 2.0])),
        min_tokens=draw(st.sampled_from([0, 2])),
        stop_token_ids=draw(st.lists(st.integers(0, vocabulary - 1), max_size=3)),
    )
    seen = draw(st.lists(st.integers(0, vocabulary - 1), max_size=8, unique=True))
    return np.array(steps) / grid, params, seen, draw(st.integers(0, 3))


@settings(max_examples=300, deadline=None)
@given(filtered_request(23))
def test_exactly_the_right_tokens_are_kept_with_the_right_probabilities(request_):
    logits, params, seen, step = request_
    expected, margin = reference(logits, params, seen=seen, step=step)
    assume(margin > 1e-5)
    marked = np.isin(np.arange(len(logits)), seen)[None]
    weight = run(token_weights, EVERYTHING, logits[None], [(params, seed_words(0, 0), step)], marked)[0]
    assert (weight > 0).tolist() == (expected > 0).tolist()
    np.testing.assert_allclose(weight / weight.sum(dtype=np.float64), expected, rtol=5e-6, atol=1e-12)


@pytest.mark.parametrize(("vocabulary", "top_k", "top_p"), [(1000, 50, 1.0), (1000, 0, 0.9), (33_333, 700, 0.95)])
def test_filters_on_larger_vocabularies(vocabulary, top_k, top_p):
    logits = np.random.default_rng(vocabulary).normal(0, 3, (3, vocabulary)).astype(np.float32)
    params = SamplingParams(top_k=top_k, top_p=top_p)
    weight = run(token_weights, SamplingMode.covering([params]), logits, [(params, seed_words(0, 0), 0)] * 3)
    for row in range(3):
        expected, margin = reference(logits[row], params)
        assert margin > 1e-7
        assert ((weight[row] > 0) == (expected > 0)).all()


def threefry2x32(key, counter):
    """Salmon et al. (2011), 20 rounds, in Python integers."""
    mask = 2**32 - 1
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    left, right = (counter[0] + keys[0]) & mask, (counter[1] + keys[1]) & mask
    for block in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            left = (left + right) & mask
            right = ((right << rotation) | (right >> (32 - rotation))) & mask
            right ^= left
        left = (left + keys[(block + 1) % 3]) & mask
        right = (right + keys[(block + 2) % 3] + block + 1) & mask
    return left, right


def expected_draw(probabilities, seed, step):
    """Return the token that the two words of the request's block stand for: a chunk of 256, then a token in it."""
    words = threefry2x32([int(word) for word in seed], (0, step))
    uniforms = [(word >> 8) / 2**24 for word in words]
    chunks = [probabilities[start : start + 256] for start in range(0, len(probabilities), 256)]
    running = np.cumsum([chunk.sum() for chunk in chunks])
    chunk = int(np.argmax(running > uniforms[0] * running[-1]))
    inside = np.cumsum(chunks[chunk])
    return 256 * chunk + int(np.argmax(inside > uniforms[1] * inside[-1]))


@pytest.mark.parametrize("vocabulary", [5, 256, 1000])
def test_drawn_tokens_are_the_inverse_cdf_of_threefry(vocabulary):
    """Exact: numbers and decision. A mismatch by rounding has a chance of about 1e-7 a draw; the seeds are fixed."""
    logits = np.random.default_rng(3).normal(0, 2, vocabulary).astype(np.float32)
    params = SamplingParams(temperature=0.8, top_p=0.95)
    probabilities, _ = reference(logits, params)
    requests = [
        (params, seed_words(seed, index), step) for seed in (0, 2**62) for index in (0, 1) for step in range(50)
    ]
    tokens = run(sample, EVERYTHING, np.tile(logits, (200, 1)), requests).tokens
    assert tokens.tolist() == [expected_draw(probabilities, seed, step) for _, seed, step in requests]


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.7, top_k=9, min_p=0.05)])
def test_distribution_passes_a_chi_square_test(params):
    """Over steps and over seeds, against the 99.9 % point of chi-square as Wilson and Hilferty approximate it."""
    logits = np.random.default_rng(11).normal(0, 1.5, 20).astype(np.float32)
    expected, _ = reference(logits, params)
    draws = 10_000
    along_steps = [(params, seed_words(5, 0), step) for step in range(draws)]
    along_seeds = [(params, seed_words(seed // 2, seed % 2), 4) for seed in range(draws)]
    for requests in (along_steps, along_seeds):
        tokens = run(sample, SamplingMode.covering([params]), np.tile(logits, (draws, 1)), requests).tokens
        counts = np.bincount(tokens, minlength=20)
        kept = expected > 0
        assert counts[~kept].sum() == 0
        statistic = ((counts - draws * expected)[kept] ** 2 / (draws * expected[kept])).sum()
        degrees = kept.sum() - 1
        assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.09 * np.sqrt(2 / (9 * degrees))) ** 3


MIXED = [
    SamplingParams(temperature=0),
    SamplingParams(),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.3, top_k=40),
    SamplingParams(min_p=0.1),
    SamplingParams(top_k=100, top_p=0.8, repetition_penalty=1.2),
    SamplingParams(temperature=0, repetition_penalty=1.5, min_tokens=4),
    SamplingParams(temperature=100.0),
]


def mixed_batch(size, vocabulary):
    rng = np.random.default_rng(size)
    logits = rng.normal(0, 3, (size, vocabulary)).astype(np.float32)
    requests = [(MIXED[row % len(MIXED)], seed_words(row, 0), 3 * row) for row in range(size)]
    return logits, requests, rng.random((size, vocabulary)) < 0.1


@pytest.mark.parametrize("vocabulary", [300, 4099])
def test_a_row_alone_among_others_and_anywhere_gives_the_same_token(vocabulary):
    logits, requests, seen = mixed_batch(16, vocabulary)
    together = run(sample, EVERYTHING, logits, requests, seen)
    order = np.random.default_rng(0).permutation(16)
    shuffled = run(sample, EVERYTHING, logits[order], [requests[row] for row in order], seen[order])
    assert shuffled.tokens.tolist() == together.tokens[order].tolist()
    for size in (1, 3, 5):
        for start in range(0, 16 - size, size):
            part = slice(start, start + size)
            alone = run(sample, EVERYTHING, logits[part], requests[part], seen[part])
            assert alone.tokens.tolist() == together.tokens[part].tolist()
            assert alone.top_ids.tolist() == together.top_ids[part].tolist()


def test_every_mode_that_covers_a_row_gives_it_the_same_token():
    logits, requests, seen = mixed_batch(64, 1000)
    expected = run(sample, EVERYTHING, logits, requests, seen).tokens
    for mode in MODES:
        tokens = run(sample, mode, logits, requests, seen).tokens
        for row, (params, _, _) in enumerate(requests):
            needs = SamplingMode.covering([params])
            if all(have or not need for have, need in zip(*map(dataclasses.astuple, (mode, needs)), strict=True)):
                assert tokens[row] == expected[row]


EDITS = [
    {"presence_penalty": 0.1},
    {"frequency_penalty": -0.1},
    {"logit_bias": {3: 1}},
    {"allowed_token_ids": [3]},
    {"bad_words": ["a"]},
    {"structured_outputs": StructuredOutputsParams(regex="a")},
]


@st.composite
def edited_row(draw, vocabulary):
    some = st.lists(st.integers(0, vocabulary - 1), max_size=vocabulary, unique=True)
    ids = np.array(draw(some), np.int32)
    numbers = st.lists(st.integers(-8, 8), min_size=len(ids), max_size=len(ids))
    bias, penalty = (np.array(draw(numbers), np.float32) / 4 for _ in range(2))
    allowed = draw(st.one_of(st.none(), some.filter(bool)))
    return allowed, RowEdits(
        allowed=None if allowed is None else pack_tokens(allowed, vocabulary), ids=ids, bias=bias, penalty=penalty
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(edited_row(37), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_edits_are_numpys(rows, seed):
    """Bias, repetition penalty, the other penalties, and only then what is allowed; vocabularies of no whole words."""
    rng = np.random.default_rng(seed)
    logits, seen = rng.integers(-24, 24, (4, 37)) / 8, rng.random((4, 37)) < 0.2
    params = SamplingParams(repetition_penalty=2.0, temperature=0.5)
    weight = run(
        token_weights, EVERYTHING, logits, [(params, seed_words(0, 0), 0)] * 4, seen, [edits for _, edits in rows]
    )
    for row in range(4):
        expected = logits[row].copy()
        allowed, edits = rows[row] if row < len(rows) else (None, None)
        if edits is not None:
            expected[edits.ids] += edits.bias
        expected = np.where(seen[row], np.where(expected > 0, expected / 2, expected * 2), expected)
        if edits is not None:
            expected[edits.ids] -= edits.penalty
        if allowed is not None:
            expected[np.setdiff1d(np.arange(37), allowed)] = -np.inf
        np.testing.assert_allclose(weight[row], np.exp((expected - expected.max()) / 0.5), rtol=1e-5)


def test_edits_leave_logprobs_and_say_when_no_token_is_left():
    logits = np.random.default_rng(4).normal(0, 3, (3, 70))
    nothing = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32)
    only = [pack_tokens(ids, 70) for ids in ([69], [])]
    edits = [
        RowEdits(**dict(zip(("allowed", "ids", "bias", "penalty"), (mask, *nothing), strict=True))) for mask in only
    ]
    requests = [(SamplingParams(), seed_words(row, 0), 0) for row in range(3)]
    sampled = run(sample, EVERYTHING, logits, requests, edits=edits)
    free = run(sample, EVERYTHING, logits, requests)
    assert sampled.tokens.tolist() == [69, NO_TOKEN, free.tokens[2]]
    exact = logits[0] - np.log(np.exp(logits[0]).sum())
    np.testing.assert_allclose(sampled.logprob[0], exact[69], rtol=1e-5)
    assert (sampled.top_ids == free.top_ids).all()


def test_more_entries_than_are_sent_at_once():
    vocabulary = 2 * ENTRIES + 3
    logits = np.random.default_rng(5).normal(0, 1, (2, vocabulary))
    bias = np.arange(vocabulary, dtype=np.float32) % 101
    edits = RowEdits(allowed=None, ids=np.arange(vocabulary, dtype=np.int32), bias=bias, penalty=0 * bias)
    requests = [(SamplingParams(temperature=0), seed_words(0, 0), 0)] * 2
    tokens = run(sample, EVERYTHING, logits, requests, edits=[None, edits]).tokens
    assert tokens.tolist() == [logits[0].argmax(), (logits[1].astype(np.float32) + bias).argmax()]


def test_mode_is_the_cheapest_that_covers_the_batch():
    modes = [SamplingMode.covering([params]) for params in MIXED]
    assert [MODES.index(mode) for mode in modes] == [0, 2, 4, 4, 2, 6, 6, 2]
    assert SamplingMode.covering([SamplingParams(temperature=0, top_k=5, logprobs=0)]) == MODES[1]
    assert SamplingMode.covering([]) == MODES[0]
    assert SamplingMode.covering(MIXED) == MODES[6]
    assert len({hash(mode) for mode in MODES}) == len(MODES) == 9
    assert [SamplingMode.covering([SamplingParams(**edit)]) for edit in EDITS] == [EVERYTHING] * len(EDITS)
    with pytest.raises(ValueError, match="edits needs penalties and logprobs"):
        SamplingMode(sampled=True, filters=True, edits=True)
    with pytest.raises(ValueError, match="filters needs sampled"):
        SamplingMode(filters=True)


def test_greedy_takes_the_first_of_equal_logits_in_every_mode():
    logits = np.zeros((3, 1000))
    logits[0, [700, 300, 999]] = 2.0
    logits[1, 511] = -1e-9
    logits[2] = -np.inf
    logits[2, 600:] = -5.0
    requests = [(SamplingParams(temperature=0, top_k=3, top_p=0.5), seed_words(row, 0), row) for row in range(3)]
    for mode in MODES:
        assert run(sample, mode, logits, requests).tokens.tolist() == [300, 0, 600]


def test_what_leaves_no_token_is_told_from_logits_without_a_distribution():
    """A penalty so small that a seen token's logit overflows, and a ban of all tokens that the model gives."""
    logits = np.random.default_rng(1).normal(0, 3, (4, 400))
    logits[2] = np.where(np.arange(400) < 2, 1.0, -np.inf)
    logits[3] = np.nan
    requests = [
        (SamplingParams(top_p=0.9), seed_words(0, 0), 0),
        (SamplingParams(repetition_penalty=1e-38), seed_words(1, 0), 0),
        (SamplingParams(min_tokens=5, stop_token_ids=[0, 1]), seed_words(2, 0), 0),
        (SamplingParams(min_tokens=5, stop_token_ids=[0, 1]), seed_words(2, 0), 0),
    ]
    seen = np.zeros((4, 400), bool)
    seen[1, logits[1].argmax()] = True
    tokens = run(sample, EVERYTHING, logits, requests, seen).tokens.tolist()
    assert tokens[0] >= 0
    assert tokens[1:] == [NO_TOKEN, NO_TOKEN, INVALID_TOKEN]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_rows_without_a_distribution_are_marked_and_spoil_no_other(mode):
    logits = np.random.default_rng(1).normal(0, 3, (6, 400))
    logits[1, 399] = np.nan
    logits[2] = np.nan
    logits[3] = -np.inf
    logits[4, 5] = np.inf
    requests = [(SamplingParams(top_p=0.9), seed_words(row, 0), 0) for row in range(6)]
    sampled = run(sample, mode, logits, requests)
    assert sampled.tokens[1:5].tolist() == [INVALID_TOKEN] * 4
    alone = run(sample, mode, logits[[0, 5]], [requests[0], requests[5]])
    assert sampled.tokens[[0, 5]].tolist() == alone.tokens.tolist()
    if mode.logprobs:
        assert np.isnan(sampled.logprob[1:5]).all()
        assert np.isfinite(sampled.logprob[[0, 5]]).all()


def test_extreme_parameters_still_draw_a_token():
    logits = np.random.default_rng(2).normal(0, 30, (5, 500))
    extremes = [
        SamplingParams(temperature=1e-5),
        SamplingParams(temperature=1e6),
        SamplingParams(top_p=1e-300),
        SamplingParams(min_p=1.0),
        SamplingParams(top_k=2**31 - 1, repetition_penalty=1e6),
    ]
    tokens = run(sample, EVERYTHING, logits, [(params, seed_words(1, 0), 0) for params in extremes]).tokens
    assert tokens[[0, 2, 3]].tolist() == logits[[0, 2, 3]].argmax(-1).tolist()
    assert ((tokens >= 0) & (tokens < 500)).all()


@pytest.mark.parametrize("vocabulary", [6, 3000])
def test_logprobs_are_the_models_own(vocabulary):
    logits, requests, seen = (
        mixed_batch(16, vocabulary) if vocabulary > 6 else (np.eye(6), [(MIXED[1], seed_words(0, 0), 0)] * 6, None)
    )
    sampled = run(sample, EVERYTHING, logits, requests, seen)
    exact = logits.astype(np.float64)
    exact = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    rows = np.arange(len(logits))
    top = min(20, vocabulary)
    np.testing.assert_allclose(sampled.logprob, exact[rows, sampled.tokens], atol=2e-6)
    np.testing.assert_allclose(sampled.top_logprobs, -np.sort(-exact, axis=-1)[:, :top], atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, sampled.top_ids, 1), sampled.top_logprobs, atol=2e-6)
    ranks = [1 + (logits[row] > logits[row, sampled.tokens[row]]).sum() for row in rows]
    assert sampled.rank.tolist() == ranks
    assert all(len(set(ids)) == top for ids in sampled.top_ids.tolist())


def test_without_logprobs_nothing_else_is_returned():
    sampled = run(sample, MODES[0], np.eye(4), [None] * 4)
    assert sampled.tokens.tolist() == [0, 1, 2, 3]
    assert sampled.tokens.dtype == np.int32
    assert [sampled.logprob, sampled.rank, sampled.top_ids, sampled.top_logprobs] == [None] * 4


def test_eos_and_stop_tokens_are_not_drawn_before_min_tokens():
    logits = np.zeros((4, 50))
    logits[:, [7, 9, 20]] = [30.0, 20.0, 10.0]
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=[9, 9])
    requests = [(params, seed_words(0, 0), step) for step in (0, 1, 2)]
    requests.append((SamplingParams(temperature=0), seed_words(0, 0), 0))
    assert run(sample, EVERYTHING, logits, requests).tokens.tolist() == [20, 20, 7, 7]
    many = SamplingParams(min_tokens=1, stop_token_ids=list(range(10, 10 + MAX_BANNED)))
    with pytest.raises(ValueError, match="at most 64 EOS and stop tokens together, got 65"):
        pack_rows([(many, seed_words(0, 0), 0)], eos_token_ids=EOS)


def test_repetition_penalty_by_hand():
    """Positive logits are divided, negative ones multiplied, unseen ones left; greedy feels it too."""
    logits = np.array([[2.6, 2.1, -1.0, -1.2]])
    seen = np.array([[True, False, True, False]])
    params = SamplingParams(repetition_penalty=1.3)
    weight = run(token_weights, EVERYTHING, logits, [(params, seed_words(0, 0), 0)], seen)[0]
    np.testing.assert_allclose(weight, np.exp(np.array([2.0, 2.1, -1.3, -1.2]) - 2.1), rtol=1e-6)
    greedy = SamplingParams(repetition_penalty=1.3, temperature=0)
    assert run(sample, EVERYTHING, logits, [(greedy, seed_words(0, 0), 0)], seen).tokens.tolist() == [1]


def test_only_a_greedy_mode_needs_no_rows():
    assert sample(jnp.eye(3), None, mode=MODES[0]).tokens.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="rows must be given"):
        sample(jnp.eye(3), None, mode=MODES[2])


def test_penalties_need_seen():
    with pytest.raises(ValueError, match=r"needs rows\.seen"):
        sample(jnp.eye(3), pack_rows([None] * 3, eos_token_ids=EOS), mode=MODES[7])
    with pytest.raises(ValueError, match=r"needs rows\.edits"):
        sample(jnp.eye(3), pack_rows([None] * 3, eos_token_ids=EOS), mode=EVERYTHING)


def test_seed_words_are_stable_and_distinct():
    """numpy promises that SeedSequence's words never change; these are theirs for (seed 0, sample 0)."""
    assert seed_words(0, 0).dtype == np.uint32
    assert seed_words(0, 0).tolist() == np.random.SeedSequence(0).spawn(1)[0].generate_state(2).tolist()
    words = {tuple(seed_words(seed, index)) for seed in (0, 1, 2**32, 2**63 - 1) for index in range(50)}
    assert len(words) == 200
