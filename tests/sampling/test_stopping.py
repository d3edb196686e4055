"""OutputStream against the offline answer: decode everything, then look for the end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_jax.engine.output_processor import OutputStream, StopMatcher
from apex_jax.execution.sampler import INVALID_TOKEN, NO_TOKEN
from apex_jax.sampling_params import SamplingParams

EOS = 0
PIECES = ["<eos>", "a", "b", "ab", "ba", "aab", "", "bbaab", "c"]


class FakeDetokenizer:
    """Token i is PIECES[i]; the last `delay` characters wait, as an unfinished character or a space would."""

    def __init__(self, delay=0):
        self.delay, self.waiting, self.pushed = delay, "", []

    def push(self, ids):
        self.pushed.extend(ids)
        text = self.waiting + "".join(PIECES[i] for i in ids)
        certain = max(0, len(text) - self.delay)
        self.waiting = text[certain:]
        return text[:certain]

    def finish(self):
        text, self.waiting = self.waiting, ""
        return text


def stream_of(params, *, delay=0, max_tokens=None):
    return OutputStream(params, FakeDetokenizer(delay), eos_token_ids=(EOS,), max_tokens=max_tokens)


def offline(tokens, params):
    """Return (text, accepted tokens, finish_reason, stop_reason), looking at the whole text with `str.find` only."""
    end, reason, cause = len(tokens), None, None
    for position, token in enumerate(tokens):
        if position + 1 >= params.min_tokens and token == EOS and not params.ignore_eos:
            end, reason, cause = position + 1, "stop", None
        elif position + 1 >= params.min_tokens and token in (params.stop_token_ids or ()):
            end, reason, cause = position + 1, "stop", token
        elif position + 1 == params.max_tokens:
            end, reason, cause = position + 1, "length", None
        if reason is not None:
            break
    silent = end - 1 if reason == "stop" and not params.include_stop_str_in_output else end
    pieces = [PIECES[token] for token in tokens[:silent]]
    text = "".join(pieces)
    ignored = len("".join(pieces[: params.min_tokens]))
    # (end, start, string) of the first completed one that counts; of several completed at once the longest.
    found = sorted(
        (start + len(string), start, string)
        for string in params.stop_strings
        for start in range(len(text))
        if text.startswith(string, start) and start + len(string) > ignored
    )
    if not found:
        return text, tokens[:end], reason, cause
    stop_end, stop_start, string = found[0]
    lengths = [len("".join(pieces[: count + 1])) for count in range(len(pieces))]
    used = next(count + 1 for count, length in enumerate(lengths) if length >= stop_end)
    text = text[:stop_end] if params.include_stop_str_in_output else text[:stop_start]
    return text, tokens[:used], "stop", string


@st.composite
def generation(draw):
    params = SamplingParams(
        max_tokens=draw(st.integers(6, 40)),
        min_tokens=draw(st.sampled_from([0, 0, 1, 5])),
        stop=draw(st.lists(st.text("abc", min_size=1, max_size=6), max_size=4)),
        stop_token_ids=draw(st.sampled_from([None, [8], [4, 0]])),
        ignore_eos=draw(st.booleans()),
        include_stop_str_in_output=draw(st.booleans()),
    )
    tokens = draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, EOS]), max_size=45))
    cuts = sorted(draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    parts = [tokens[start:end] for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]
    return params, tokens, parts


@settings(max_examples=1500, deadline=None)
@given(generation())
def test_streaming_equals_the_offline_answer(case):
    params, tokens, parts = case
    stream = stream_of(params)
    deltas = [stream.push(part) for part in parts]
    text, accepted, finish_reason, stop_reason = offline(tokens, params)
    assert "".join(deltas) == stream.text
    assert (stream.token_ids, stream.finish_reason, stream.stop_reason) == (accepted, finish_reason, stop_reason)
    if finish_reason is None:
        assert text.startswith(stream.text)
        deltas.append(stream.abort())
        assert stream.finish_reason == "abort"
    assert "".join(deltas) == stream.text == text
    assert stream.push([1, 2]) == stream.abort() == ""


@settings(max_examples=300, deadline=None)
@given(generation(), st.integers(1, 4))
def test_a_detokenizer_that_waits_changes_when_but_not_what(case, delay):
    params, tokens, parts = case
    if params.min_tokens or params.include_stop_str_in_output:
        return
    stream = stream_of(params, delay=delay)
    deltas = [stream.push(part) for part in parts]
    text, accepted, finish_reason, stop_reason = offline(tokens, params)
    assert "".join(deltas) == stream.text
    if stream.finish_reason is None:
        assert text.startswith(stream.text)
    else:
        assert stream.text == text
        # A stop string may show some tokens late; what ends the stream then flushes it out all the same.
        assert stream.token_ids[: len(accepted)] == accepted
        assert (stream.finish_reason, stream.stop_reason) == (finish_reason, stop_reason)


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4), st.text("ab", max_size=30))
def test_what_is_held_is_exactly_what_a_stop_string_may_still_use(strings, text):
    matcher = StopMatcher(strings)
    for end in range(1, len(text) + 1):
        found = matcher.scan(text[end - 1])
        matches = [string for string in strings if text[:end].endswith(string)]
        assert found == ((1, max(matches, key=len)) if matches else None)
        held = max(
            length
            for length in range(end + 1)
            if length == 0 or any(string.startswith(text[end - length : end]) for string in strings)
        )
        assert matcher.held == held


def tokens_of(text):
    return [{"a": 1, "b": 2, "c": 8}[character] for character in text]


def test_stop_string_across_token_borders_is_held_back_and_cut():
    stream = stream_of(SamplingParams(stop="bbac", max_tokens=99))
    shown = [stream.push([token]) for token in tokens_of("abbabbacb")]
    assert shown == ["a", "", "", "", "bba", "", "", "", ""]
    assert (stream.text, stream.token_ids) == ("abba", tokens_of("abbabbac"))
    assert (stream.finish_reason, stream.stop_reason) == ("stop", "bbac")


def test_of_two_stop_strings_in_one_token_the_first_completed_wins_whatever_their_order():
    for stop in (["aab", "ba"], ["ba", "aab"]):
        stream = stream_of(SamplingParams(stop=stop))
        assert stream.push([7]) == "b"  # "bbaab": "ba" is completed before "aab"
        assert stream.stop_reason == "ba"
    stream = stream_of(SamplingParams(stop=["ab", "aab"]))
    assert stream.push([7]) == "bb"  # both end at once: the longest
    assert stream.stop_reason == "aab"


def test_stop_string_may_stay_in_the_text_which_then_needs_no_holding_back():
    stream = stream_of(SamplingParams(stop="bb", include_stop_str_in_output=True))
    assert [stream.push([token]) for token in (2, 1, 7)] == ["b", "a", "bb"]
    assert stream.text == "babb"


def test_eos_ends_without_its_text_and_without_a_stop_reason():
    stream = stream_of(SamplingParams(stop="bc"))
    assert stream.push([1, 2]) == "a"
    assert stream.push([EOS, 1]) == "b"  # what was held back comes with the end
    assert stream.token_ids == [1, 2, EOS]
    assert (stream.finish_reason, stream.stop_reason, stream.text) == ("stop", None, "ab")


def test_stop_token_is_the_stop_reason_and_ignore_eos_does_not_ignore_it():
    stream = stream_of(SamplingParams(stop_token_ids=[8], ignore_eos=True))
    stream.push([1, EOS, 2, 8])
    assert (stream.finish_reason, stream.stop_reason, stream.text) == ("stop", 8, "a<eos>b")
    stream = stream_of(SamplingParams(stop_token_ids=[EOS], ignore_eos=True))
    stream.push([1, EOS, 2])
    assert (stream.stop_reason, stream.token_ids) == (EOS, [1, EOS])


def test_length_and_eos_at_once_is_a_stop():
    stream = stream_of(SamplingParams(max_tokens=2))
    stream.push([1, EOS])
    assert stream.finish_reason == "stop"
    stream = stream_of(SamplingParams(max_tokens=2))
    stream.push([1, 2, 3])
    assert (stream.finish_reason, stream.token_ids) == ("length", [1, 2])


def test_the_smaller_limit_holds_and_there_must_be_one():
    for of_request, of_context in ((3, None), (None, 3), (3, 9), (9, 3)):
        stream = stream_of(SamplingParams(max_tokens=of_request), max_tokens=of_context)
        stream.push([1] * 20)
        assert len(stream.token_ids) == 3
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got None, and None"):
        stream_of(SamplingParams(max_tokens=None))
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 16, and 0"):
        stream_of(SamplingParams(), max_tokens=0)


def test_what_the_detokenizer_flushes_at_the_end_can_complete_a_stop_string():
    stream = stream_of(SamplingParams(max_tokens=3, stop="bc"), delay=2)
    assert stream.push(tokens_of("abc")) == "a"
    assert (stream.finish_reason, stream.stop_reason) == ("stop", "bc")


def test_invalid_token_aborts_and_says_why():
    stream = stream_of(SamplingParams(stop="bc"))
    assert stream.push([1, 2, INVALID_TOKEN, 3]) == "ab"
    assert (stream.finish_reason, stream.token_ids) == ("abort", [1, 2])
    assert stream.stop_reason == "the model's logits are not finite"
    stream = stream_of(SamplingParams(min_tokens=9, repetition_penalty=1e-30))
    stream.push([1, NO_TOKEN])
    assert (stream.finish_reason, stream.token_ids) == ("abort", [1])
    assert stream.stop_reason.startswith("the sampling parameters leave no token to draw: repetition_penalty")


def test_without_a_tokenizer_there_are_ids_only():
    stream = OutputStream(SamplingParams(max_tokens=2), None, eos_token_ids=())
    assert stream.push([1, 2]) == stream.text == ""
    assert stream.finish_reason == "length"
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        OutputStream(SamplingParams(stop="a"), None, eos_token_ids=())


def test_work_is_linear_in_the_output(monkeypatch):
    """Every token is detokenised once and every character is scanned once, however long the text grows."""
    scanned = []
    scan = StopMatcher.scan
    monkeypatch.setattr(StopMatcher, "scan", lambda self, text: scanned.append(len(text)) or scan(self, text))
    detokenizer = FakeDetokenizer()
    stream = OutputStream(SamplingParams(stop="aaab", max_tokens=20_000), detokenizer, eos_token_ids=())
    for _ in range(20_000):
        stream.push([1])
    assert stream.finish_reason == "length"
    assert len(detokenizer.pushed) == sum(scanned) == len(stream.text) == 20_000
