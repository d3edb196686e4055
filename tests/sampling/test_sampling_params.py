"""SamplingParams: defaults, normalisation, and a clear refusal of everything out of range."""

import dataclasses

import numpy as np
import pytest

from apex_jax.sampling_params import SamplingParams


def test_defaults_are_vllms():
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.repetition_penalty, params.seed, params.max_tokens, params.min_tokens) == (1.0, None, 16, 0)
    assert (params.ignore_eos, params.logprobs) == (False, None)
    assert (params.skip_special_tokens, params.include_stop_str_in_output) == (True, False)
    assert params.stop_strings == ()
    assert params.stop_token_ids == ()


@pytest.mark.parametrize("temperature", [0, 0.0, 9e-6])
def test_vanishing_temperature_is_greedy(temperature):
    assert SamplingParams(temperature=temperature).greedy
    assert not SamplingParams(temperature=1e-5).greedy


def test_equal_requests_are_equal_and_hashable():
    of_numpy = {"stop_token_ids": [np.int64(3), 4], "top_k": np.int32(5), "temperature": np.float32(0.5)}
    one = SamplingParams(stop="end", **of_numpy)
    two = SamplingParams(stop=["end"], stop_token_ids=(3, 4), top_k=5, temperature=0.5)
    assert one == two
    assert hash(one) == hash(two)
    assert type(one.top_k) is int
    assert type(one.temperature) is float


def test_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        SamplingParams(1)  # pyright: ignore[reportCallIssue]


EDGES = [
    {"n": 1},
    {"temperature": 1e6},
    {"top_p": 1},
    {"top_p": 1e-30},
    {"top_k": -1},
    {"min_p": 0},
    {"min_p": 1},
    {"seed": 0},
    {"seed": 2**63 - 1},
    {"max_tokens": None, "min_tokens": 10**6},
    {"max_tokens": 3, "min_tokens": 3},
    {"logprobs": 0},
    {"logprobs": 20},
    {"stop": []},
    {"stop_token_ids": []},
]


@pytest.mark.parametrize("values", EDGES, ids=str)
def test_edges_are_allowed(values):
    SamplingParams(**values)


OUT_OF_RANGE = [
    ("n", 0),
    ("n", -1),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", -0.5),
    ("top_p", float("nan")),
    ("top_k", -2),
    ("top_k", 2**31),
    ("min_p", -0.01),
    ("min_p", 1.5),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", float("inf")),
    ("seed", -1),
    ("seed", 2**63),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("min_tokens", -1),
    ("logprobs", -1),
    ("logprobs", 21),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in [\[(].*got {value}"):
        SamplingParams(**{name: value})


WRONG_TYPES = [
    ("n", True),
    ("n", 1.0),
    ("n", "2"),
    ("temperature", "hot"),
    ("temperature", True),
    ("temperature", None),
    ("temperature", 1j),
    ("top_k", 5.0),
    ("seed", 1.5),
    ("seed", False),
    ("max_tokens", 16.0),
    ("logprobs", True),
    ("stop", 7),
    ("stop", [7]),
    ("stop", {"a": 1}),
    ("stop_token_ids", 7),
    ("stop_token_ids", ["7"]),
    ("stop_token_ids", [True]),
    ("ignore_eos", 1),
    ("skip_special_tokens", None),
    ("include_stop_str_in_output", "yes"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_wrong_types_are_refused_by_name(name, value):
    with pytest.raises(TypeError, match=name):
        SamplingParams(**{name: value})


def test_refusals_that_concern_two_values_or_items():
    with pytest.raises(ValueError, match=r"min_tokens must be at most max_tokens \(3\), got 4"):
        SamplingParams(max_tokens=3, min_tokens=4)
    with pytest.raises(ValueError, match="stop must not hold an empty string"):
        SamplingParams(stop=["a", ""])
    with pytest.raises(ValueError, match="stop_token_ids must be in"):
        SamplingParams(stop_token_ids=[3, -1])
