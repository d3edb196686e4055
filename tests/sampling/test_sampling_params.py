"""SamplingParams: defaults, normalisation, and a clear refusal of everything out of range."""

import dataclasses
import pickle

import numpy as np
import pytest

from apex_jax.sampling_names import ASKS_FOR_NOTHING, ELSEWHERE
from apex_jax.sampling_params import SamplingParams
from apex_jax.structured_outputs import StructuredOutputsParams


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


class TestTheRestOfTheSurface:
    def test_normalised_and_hashable(self):
        values = {"logit_bias": {"7": 1, np.int64(3): -2.5}, "allowed_token_ids": [3, 7, 3], "bad_words": "no"}
        params = SamplingParams(**values)
        assert params.logit_bias == {7: 1.0, 3: -2.5}
        assert params.allowed_token_ids == (3, 7)
        assert params.bad_words == ("no",)
        assert hash(params) == hash(SamplingParams(**values))
        assert params != SamplingParams(**{**values, "logit_bias": {7: 1}})
        assert dataclasses.replace(params, n=2).logit_bias == params.logit_bias
        assert pickle.loads(pickle.dumps(params)) == params

    def test_what_changes_logits(self):
        plain = SamplingParams(repetition_penalty=2, min_tokens=3, logit_bias={}, bad_words=[], presence_penalty=-0.0)
        assert not plain.edits_logits
        assert SamplingParams(allowed_token_ids=[0]).edits_logits

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            ({"presence_penalty": 2.1}, ValueError, r"presence_penalty must be in \[-2, 2\], got 2.1"),
            ({"frequency_penalty": -3}, ValueError, r"frequency_penalty must be in \[-2, 2\], got -3"),
            ({"frequency_penalty": float("nan")}, ValueError, "frequency_penalty must be in"),
            ({"logit_bias": {1: 101}}, ValueError, r"logit_bias\[1\] must be in \[-100, 100\], got 101"),
            ({"logit_bias": {1: "a"}}, TypeError, r"logit_bias\[1\] must be a number, got 'a'"),
            ({"logit_bias": {-1: 1}}, ValueError, r"every token id of logit_bias must be in \[0, .*got -1"),
            ({"logit_bias": {"a": 1}}, TypeError, "every token id of logit_bias must be an integer, got 'a'"),
            ({"logit_bias": [1]}, TypeError, r"logit_bias must be a mapping of token ids to numbers, got \[1\]"),
            ({"allowed_token_ids": []}, ValueError, "allowed_token_ids must hold at least one token"),
            ({"allowed_token_ids": 3}, TypeError, "allowed_token_ids must be a list of token ids"),
            ({"bad_words": [" "]}, ValueError, "bad_words must not hold an empty string or spaces alone"),
            ({"bad_words": [3]}, TypeError, "bad_words must hold strings only"),
            ({"structured_outputs": "a+"}, TypeError, r"must be StructuredOutputsParams, got 'a\+'"),
            (
                {"structured_outputs": StructuredOutputsParams(regex="a"), "ignore_eos": True},
                ValueError,
                "structured_outputs end with EOS, got them with ignore_eos=True",
            ),
        ],
        ids=str,
    )
    def test_refusals(self, values, error, message):
        with pytest.raises(error, match=message):
            SamplingParams(**values)

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            ({}, ValueError, "exactly one of json, regex, choice, grammar, json_object, got none"),
            ({"regex": "a", "choice": ["a"]}, ValueError, r"exactly one of .*got \['regex', 'choice'\]"),
            ({"choice": []}, ValueError, "choice must hold at least one text"),
            ({"choice": ["a", ""]}, ValueError, "choice must hold at least one text, and no empty one"),
            ({"choice": "ab"}, TypeError, "choice must be a list of texts, got 'ab'"),
            ({"choice": [1]}, TypeError, "choice must hold texts only, got 1"),
            ({"regex": 1}, TypeError, "regex must be a text, got 1 of type int"),
            ({"grammar": ""}, ValueError, "grammar must not be empty"),
            ({"json": "{"}, ValueError, "json is no JSON schema: Expecting"),
            ({"json": {"a": {1}}}, ValueError, "json is no JSON schema: .*set is not JSON"),
            ({"json": 3}, TypeError, "json must be a JSON schema as a mapping or a text, got 3"),
            ({"json_object": 1}, TypeError, "json_object must be True or False, got 1"),
        ],
        ids=str,
    )
    def test_refused_structures(self, values, error, message):
        with pytest.raises(error, match=message):
            StructuredOutputsParams(**values)


class TestNamesOfOthers:
    def test_that_ask_for_nothing_change_nothing(self):
        nothing = {name: values[-1] for name, values in ASKS_FOR_NOTHING.items()}
        assert SamplingParams(temperature=0.5, **nothing) == SamplingParams(temperature=0.5)
        assert SamplingParams(best_of=None, n=2) == SamplingParams(n=2)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"best_of": 3}, r"no parameter 'best_of' \(it is 3\); here that is n"),
            (
                {"use_beam_search": True},
                "'use_beam_search' .*it is True.*; of what it means elsewhere only False is done",
            ),
            ({"max_new_tokens": 5}, "here that is max_tokens"),
            ({"prompt_logprobs": 1}, "here that is logprobs, of the output alone"),
            ({"truncate_prompt_tokens": 5}, "max_model_len of the LLM"),
            ({"guided_decoding": {"regex": "a"}}, "here that is structured_outputs"),
            ({"temprature": 1}, "did you mean temperature"),
            ({"xyzzy": 1}, "; there are allowed_token_ids, bad_words, "),
        ],
        ids=str,
    )
    def test_that_ask_for_something_say_what_does_it(self, values, message):
        with pytest.raises(TypeError, match=message):
            SamplingParams(**values)

    def test_every_one_that_is_named_is_none_of_ours_and_what_is_named_is(self):
        ours = {field.name for field in dataclasses.fields(SamplingParams)}
        assert not ours & {*ASKS_FOR_NOTHING, *ELSEWHERE}
        firsts = {text.split(",")[0].split(" ")[0] for text in ELSEWHERE.values()}
        assert firsts - {"max_model_len"} <= ours
