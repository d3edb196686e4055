"""Structured outputs: what comes out has the form, and nothing else changes."""

import dataclasses
import json
import re
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from apex_jax import LLM, SamplingParams, StructuredOutputsParams

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PROMPT = [5, 17, 40]
EOS = 11
HYBRID = {"max_num_seqs": 3, "max_host_seqs": 4, "device_kv_tokens": 96, "host_kv_bytes": 1 << 20}
LLAMAS = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
LIST = 'start: "[" item ("," item)* "]"\nitem: /[0-9]/ | start'


def backend_of(vocabulary, decoder, merges=()):
    model = Tokenizer(models.BPE(vocabulary, list(merges)))
    model.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>")


@pytest.fixture(scope="module")
def characters():
    """A token a character of ASCII, but for the asterisk, whose place is EOS's (11)."""
    vocabulary = {chr(31 + index): index for index in range(1, 96) if index != EOS}
    return backend_of({"<s>": 0, **vocabulary, "</s>": EOS, "<x>": 96}, LLAMAS)


@pytest.fixture(scope="module")
def of_bytes():
    """A token a byte, as GPT-2 spells them, and some of two; EOS is 11, and there are ids that mean nothing."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters[:EOS], "</s>", *letters[EOS:], "Ġa", '"}']
    tokenizer = backend_of(
        {name: index for index, name in enumerate(names)}, decoders.ByteLevel(), [("Ġ", "a"), ('"', "}")]
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.fixture(scope="module")
def llm(make, characters):
    return make(tokenizer=characters)


def structured(*, seed=0, max_tokens=120, **form):
    temperature = form.pop("temperature", 1.0)
    wanted = StructuredOutputsParams(**form)
    return SamplingParams(seed=seed, max_tokens=max_tokens, temperature=temperature, structured_outputs=wanted)


def run(llm, params, prompt=PROMPT):
    return [result.outputs[0] for result in llm.generate([prompt] * len(params), params, use_tqdm=False)]


def check_schema(output):
    assert output.finish_reason == "stop", output
    jsonschema.validate(json.loads(output.text), SCHEMA)


def test_json_of_a_schema_over_20_seeds(llm):
    outputs = run(llm, [structured(seed=seed, json=SCHEMA) for seed in range(20)])
    for output in outputs:
        check_schema(output)
        assert output.token_ids[-1] == EOS
    assert len({output.text for output in outputs}) > 15


def test_bytes_and_a_model_with_more_ids_than_its_tokenizer(make, of_bytes, config):
    from apex_jax.models import random_weights

    larger = config.replace(vocab_size=300)
    llm = make(tokenizer=of_bytes, config=larger, params=random_weights(larger, 5, "float32"))
    outputs = run(llm, [structured(seed=seed, json=SCHEMA, max_tokens=200) for seed in range(5)])
    for output in outputs:
        check_schema(output)
    accents = run(llm, [structured(seed=seed, regex="[à-ü]{3}€") for seed in range(5)])
    assert all(re.fullmatch("[à-ü]{3}€", output.text) for output in accents)


def test_a_vocabulary_with_single_bytes(stories):
    llm = LLM(stories, device_kv_tokens=1024, max_num_seqs=8)
    outputs = run(
        llm,
        [structured(seed=seed, json=SCHEMA, disable_any_whitespace=True, max_tokens=200) for seed in range(3)],
        prompt="Once upon",
    )
    for output in outputs:
        check_schema(output)
    [output] = run(llm, [structured(regex="[中文]{2}")], prompt="Once")
    assert re.fullmatch("[中文]{2}", output.text)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"[a-c]{2,5}\d"}, r"[a-c]{2,5}\d"),
        ({"choice": ["yes", "no", 'a "quoted" \\ one', "no way"]}, r'yes|no|a "quoted" \\ one|no way'),
        ({"grammar": LIST, "max_tokens": 200}, r"[\[\]0-9,]+"),
    ],
    ids=str,
)
def test_other_forms(form, pattern, llm):
    outputs = run(llm, [structured(seed=seed, **form) for seed in range(6)])
    assert len({output.text for output in outputs}) > 1
    for output in outputs:
        assert re.fullmatch(pattern, output.text), output.text
        assert output.finish_reason == "stop" or len(output.token_ids) == 200
        if "grammar" in form and output.finish_reason == "stop":
            json.loads(output.text)


def test_any_json_object(llm):
    for output in run(llm, [structured(seed=seed, json_object=True, max_tokens=250) for seed in range(3)]):
        assert output.text.startswith("{")
        assert output.finish_reason == "length" or isinstance(json.loads(output.text), dict)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_grammar_that_allows_everything_changes_no_token(temperature, make, characters):
    llm = make(tokenizer=characters)
    everything = structured(regex="(?s:.*)", temperature=temperature, seed=8, max_tokens=60)
    free = SamplingParams(temperature=temperature, seed=8, max_tokens=60)
    assert run(llm, [everything])[0].token_ids == run(llm, [free])[0].token_ids


def test_the_same_on_a_model_that_tells_stories(stories):
    """Its greedy text has no special tokens: nothing at all is kept from the free one."""
    llm = LLM(stories, device_kv_tokens=1024, max_num_seqs=4)
    free = SamplingParams(temperature=0, max_tokens=80)
    seeded = SamplingParams(temperature=0.6, seed=4, max_tokens=80)
    everything = StructuredOutputsParams(regex="(?s:.*)")
    params = [free, seeded]
    bound = [dataclasses.replace(each, structured_outputs=everything) for each in params]
    together = run(llm, [*params, *bound], prompt="Once upon a time")
    assert [output.token_ids for output in together[2:]] == [output.token_ids for output in together[:2]]
    assert [output.text for output in together[2:]] == [output.text for output in together[:2]]


@pytest.mark.parametrize("strategy", ["device_only", "layer_sync", "asymmetric_pipelining", "async_overlap"])
def test_on_either_side_and_after_preemptions(strategy, make, characters, llm, whole):
    params = [structured(seed=seed, json=SCHEMA) for seed in range(4)]
    free = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    expected = [output.token_ids for output in run(llm, [*params, free, free])]
    small = make(tokenizer=characters, strategy=strategy, **HYBRID)
    assert [output.token_ids for output in run(small, [*params, free, free])] == expected
    stats = small.stats()
    assert (stats.preemptions if strategy == "device_only" else stats.host_tokens) > 0
    whole(small)


def test_completions_and_streams_are_alone(llm):
    [result] = llm.generate([PROMPT], [SamplingParams(n=3, **values_of(structured(json=SCHEMA)))], use_tqdm=False)
    for output in result.outputs:
        check_schema(output)
    texts = ["", "", ""]
    for news in llm.stream([PROMPT], SamplingParams(n=3, **values_of(structured(json=SCHEMA)))):
        texts[news.outputs[0].index] += news.outputs[0].text
    assert texts == [output.text for output in result.outputs]


def values_of(params):
    return {"seed": params.seed, "max_tokens": params.max_tokens, "structured_outputs": params.structured_outputs}


def test_what_ends_it_early(llm, characters):
    [cut] = run(llm, [structured(json=SCHEMA, max_tokens=5)])
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 5)
    wanted = StructuredOutputsParams(regex="a+b+c")
    [stopped] = run(llm, [SamplingParams(structured_outputs=wanted, stop="b", max_tokens=99, seed=1)])
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", "b")
    assert set(stopped.text) == {"a"}


def test_what_leaves_nothing_ends_its_request_alone(llm):
    """The form asks for a `b`, which may not come, and the other for EOS before its time."""
    banned = SamplingParams(
        structured_outputs=StructuredOutputsParams(regex="ab"), allowed_token_ids=[66, EOS], max_tokens=9
    )
    early = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a"]), min_tokens=5, max_tokens=9)
    outputs = run(llm, [banned, early, structured(choice=["yes"])])
    assert [output.finish_reason for output in outputs] == ["abort", "abort", "stop"]
    assert [output.text for output in outputs] == ["a", "a", "yes"]
    assert "structured_outputs together rule out all" in outputs[0].stop_reason


REFUSED = [
    ({"regex": "a("}, "the regex of structured outputs cannot be met: .*invalid regex"),
    ({"json": {"type": "strange"}}, "the json of structured outputs cannot be met: Invalid type: strange"),
    ({"json": "false"}, "the json of structured outputs cannot be met: Unsatisfiable schema"),
    ({"json": "[1]"}, "json of structured outputs .*schema must be"),
    ({"json": {"type": "string", "minLength": 5, "maxLength": 2}}, "Unsatisfiable schema: minLength"),
    ({"grammar": "start: y"}, 'grammar of structured outputs cannot be met: .*unknown name: "y"'),
    ({"regex": "ü"}, "the regex of structured outputs cannot be met: no token of this model can begin it"),
]


@pytest.mark.parametrize(("form", "message"), REFUSED, ids=str)
def test_refused_before_anything_starts(form, message, llm, whole):
    before = llm.stats().iterations
    with pytest.raises(ValueError, match=message):
        llm.generate([PROMPT] * 2, [SamplingParams(), structured(**form)], use_tqdm=False)
    with pytest.raises(ValueError, match=message):
        llm.stream([PROMPT], structured(**form))
    assert llm.stats().iterations == before
    whole(llm)


def test_what_the_model_or_the_machine_does_not_have(make, config, characters, monkeypatch):
    with pytest.raises(ValueError, match="structured outputs need a tokenizer and this model has none"):
        make().generate([PROMPT], structured(regex="a"), use_tqdm=False)
    endless = make(tokenizer=characters, config=config.replace(eos_token_ids=()))
    with pytest.raises(ValueError, match="structured outputs end with EOS, and this model has none"):
        endless.generate([PROMPT], structured(regex="a"), use_tqdm=False)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'apex-jax\[structured\]'"):
        make(tokenizer=characters).generate([PROMPT], structured(regex="a"), use_tqdm=False)
