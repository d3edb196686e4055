"""Options against the classes that they fill."""

import argparse
import re
from dataclasses import fields

import pytest

from apex_jax import EngineOptions, SamplingParams, StructuredOutputsParams
from apex_jax.cli import build_parser
from apex_jax.cli.arguments import ENGINE_OPTIONS, byte_count, sampling_params


def parse(*arguments):
    return build_parser().parse_args(["generate", *arguments])


def test_every_sampling_parameter_can_be_given():
    given = parse(
        *("--n=2", "--temperature=0.5", "--top-p=0.9", "--top-k=7", "--min-p=0.1", "--repetition-penalty=1.2"),
        *("--seed=3", "--max-tokens=9", "--min-tokens=4", "--stop=END", "--stop=.", "--stop-token-ids=5,6"),
        *("--presence-penalty=0.5", "--frequency-penalty=-0.5", "--logit-bias=3:1.5,4:-100", "--bad-words=no"),
        *(
            "--allowed-token-ids=3,4",
            "--ignore-eos",
            "--logprobs=3",
            "--no-skip-special-tokens",
            "--include-stop-str-in-output",
        ),
    )
    params = sampling_params(given)
    assert params == SamplingParams(
        n=2,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.2,
        seed=3,
        max_tokens=9,
        min_tokens=4,
        stop=["END", "."],
        stop_token_ids=[5, 6],
        ignore_eos=True,
        logprobs=3,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={3: 1.5, 4: -100},
        allowed_token_ids=[3, 4],
        bad_words=["no"],
    )
    structured = sampling_params(parse('--structured-outputs={"choice": ["a", "b"]}'))
    assert structured.structured_outputs == StructuredOutputsParams(choice=["a", "b"])
    default = SamplingParams()
    alone = {"structured_outputs"}  # they end with EOS, which the others ignore
    names = {field.name for field in fields(SamplingParams)} - alone
    assert all(getattr(params, name) != getattr(default, name) for name in names)


def test_defaults_are_those_of_the_api_but_for_the_length():
    assert sampling_params(parse()) == SamplingParams(max_tokens=128)
    assert sampling_params(parse("--max-tokens", "none")) == SamplingParams(max_tokens=None)


def test_every_engine_option_can_be_given():
    # The device is chosen through JAX's own settings, and --seed is that of the requests.
    assert set(ENGINE_OPTIONS) == {field.name for field in fields(EngineOptions)} - {"device", "seed"}
    flags = {"auto_profile"}
    options = [f"--{name.replace('_', '-')}{'' if name in flags else '=1'}" for name in ENGINE_OPTIONS]
    given = vars(parse(*options))
    assert all(given[name] is True for name in flags)
    assert all(float(given[name]) == 1 for name in set(ENGINE_OPTIONS) - flags)
    assert not set(ENGINE_OPTIONS) & set(vars(parse()))
    assert vars(parse("--compilation-cache=none"))["compilation_cache"] is None


@pytest.mark.parametrize(
    ("text", "number"), [("4096", 4096), ("512M", 512 * 2**20), ("2GiB", 2 * 2**30), ("1.5 kb", 1536), ("1T", 2**40)]
)
def test_byte_counts(text, number):
    assert byte_count(text) == number


@pytest.mark.parametrize("text", ["", "-1", "2X", "G", "1e9", "1,000"])
def test_byte_counts_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        byte_count(text)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--logit-bias=3", "'3' is not a comma-separated list of token ids with biases"),
        ("--logit-bias=a:1", "'a:1' is not a comma-separated list of token ids with biases"),
        ('--structured-outputs={"regex": 1}', "cannot be used: regex must be a text, got 1"),
        ("--structured-outputs=[1]", r"cannot be used: an object is needed, got \[1\]"),
        ('--structured-outputs={"pattern": "a"}', "cannot be used: .*unexpected keyword argument 'pattern'"),
    ],
)
def test_values_that_cannot_be_read(argument, message, capsys):
    with pytest.raises(SystemExit):
        parse(argument)
    assert re.search(message, capsys.readouterr().err)
