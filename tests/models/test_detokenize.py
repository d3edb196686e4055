"""Streaming text against decoding everything at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers

from apex_jax.models import Detokenizer, Tokenizer
from apex_jax.models.tokenization.detokenizer import _WINDOW

characters = st.one_of(
    st.sampled_from("ab e"), st.sampled_from("é€😀\u200d👧 的한\ufffd"), st.characters(exclude_categories=["Cs"])
)
texts = st.text(alphabet=characters, max_size=60)


def byte_level() -> Fast:
    """Every byte is a token, and some tokens end or begin inside a character: 0xF0 0x9F and 0x98 0x80 0xF0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = dict(zip(_byte_order(), _spellings(), strict=True))
    vocab = {character: index for index, character in enumerate(alphabet)}
    merges = []
    for left, right in (((0xF0,), (0x9F,)), ((0x98,), (0x80,)), ((0x98, 0x80), (0xF0, 0x9F)), ((0x20,), (0x61,))):
        pair = ("".join(spelled[byte] for byte in left), "".join(spelled[byte] for byte in right))
        vocab["".join(pair)] = len(vocab)
        merges.append(pair)
    tokenizer = Fast(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_order() -> list[int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*printable, *(byte for byte in range(256) if byte not in printable)]


def _spellings() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*(chr(byte) for byte in printable), *(chr(0x100 + index) for index in range(256 - len(printable)))]


FAST = byte_level()


def decode(ids) -> str:
    return FAST.decode(list(ids), skip_special_tokens=False)


def stream(detokenizer: Detokenizer, ids: list[int], size: int) -> list[str]:
    pieces = [detokenizer.push(ids[begin : begin + size]) for begin in range(0, len(ids), size)]
    return [*pieces, detokenizer.finish()]


@given(text=texts, size=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_pieces_equal_the_text_and_end_between_characters(text, size):
    pieces = stream(Detokenizer(decode), FAST.encode(text).ids, size)
    assert "".join(pieces) == text
    assert pieces[-1] == "" or text.endswith("\ufffd")


@given(ids=st.lists(st.integers(0, FAST.get_vocab_size() - 1), max_size=80), size=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_any_tokens_equal_the_whole(ids, size):
    """Tokens of a sampling model may be no UTF-8 at all; byte-level vocabularies still stream what decoding gives."""
    assert "".join(stream(Detokenizer(decode), ids, size)) == decode(ids)


def test_tokens_that_straddle_characters_for_ever():
    """Each token here ends inside a character, so no window ever ends cleanly."""
    text = "😀" * 200
    ids = FAST.encode(text).ids
    assert max(len(FAST.id_to_token(token)) for token in ids) == 4
    assert "".join(stream(Detokenizer(decode), ids, 1)) == text


def test_cost_does_not_grow_with_length():
    for text in ("a word, then é more " * 100, "😀" * 500):
        decoded = []

        def counting(ids, decoded=decoded):
            decoded.append(len(ids))
            return decode(ids)

        ids = FAST.encode(text).ids
        assert "".join(stream(Detokenizer(counting), ids, 1)) == text
        assert max(decoded) <= 2 * _WINDOW + 1
        assert len(decoded) <= 3 * len(ids) + 3


def test_skipped_tokens_leave_no_trace():
    ids = FAST.encode("a€b").ids
    middle = [ids[0], ids[1], 7, *ids[2:]]
    assert "".join(stream(Detokenizer(decode, skip=frozenset({7})), middle, 1)) == "a€b"
    detokenizer = Detokenizer(decode, skip=frozenset({7}))
    assert detokenizer.push([7]) == detokenizer.finish() == ""


def test_unfinished_character_comes_with_finish():
    detokenizer = Detokenizer(decode)
    ids = FAST.encode("a€").ids
    assert detokenizer.push(ids[:3]) == "a"
    assert detokenizer.finish() == "\ufffd"


@pytest.fixture(scope="module")
def tokenizer(stories):
    """A vocabulary whose words begin with their space and whose other characters are single bytes."""
    return Tokenizer.from_folder(stories)


@pytest.mark.parametrize("text", ["Once upon a time", "née 的 😀😀 end", "  two  spaces ", "a\n\n b"])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_sentence_piece_equals_decoding(tokenizer, text, size):
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer.detokenizer(), ids, size)) == tokenizer.decode(ids)


def test_first_piece_after_a_prompt_keeps_its_space(tokenizer):
    prompt, answer = tokenizer.encode("Once"), tokenizer.encode("upon a")[1:]
    assert tokenizer.detokenizer(context=prompt).push(answer) == " upon a"
    assert tokenizer.detokenizer().push(answer) == "upon a"


def test_special_tokens(tokenizer):
    ids = [1, *tokenizer.encode("upon a")[1:], 2]
    assert "".join(stream(tokenizer.detokenizer(), ids, 1)) == "upon a"
    shown = tokenizer.detokenizer(skip_special_tokens=False)
    assert "".join(stream(shown, ids, 1)) == tokenizer.decode(ids, skip_special_tokens=False)
