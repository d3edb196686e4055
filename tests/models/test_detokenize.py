"""Streaming text against decoding everything at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers

from apex_jax import SamplingParams
from apex_jax.engine.output_processor import OutputStream
from apex_jax.models import Detokenizer, Tokenizer
from apex_jax.models.tokenization.byte_tokens import decoder_of
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


def byte_fallback() -> Fast:
    """Words with literal replacement characters and spaces in many places; all bytes from 0 on are ids from 3 on."""
    words = ["\u2581", "\u2581\u2581", "\u2581a", "a", "é", "😀", "\ufffd", "\u2581\ufffd", "x\ufffd", "\ufffdy"]
    spelled = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {token: index for index, token in enumerate(spelled)}
    tokenizer = Fast(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


FALLBACK = byte_fallback()
parts_of_characters = st.sampled_from([3 + byte for byte in "A😀\ufffd\u2581é\n".encode()])
broken = st.lists(
    st.one_of(parts_of_characters, st.integers(259, FALLBACK.get_vocab_size() - 1), st.integers(0, 258)), max_size=60
)


def bytes_of(token: int) -> bytes:
    if 3 <= token < 259:
        return bytes([token - 3])
    return FALLBACK.id_to_token(token).replace("\u2581", " ").encode()


@given(ids=broken, size=st.integers(1, 5))
@settings(max_examples=500, deadline=None)
def test_any_tokens_of_single_bytes_equal_the_whole(ids, size):
    """Bytes between words are decoded by themselves; Python's own decoder marks each that belongs to no character."""
    decode = decoder_of(FALLBACK)
    whole = decode(ids)
    assert "".join(stream(Detokenizer(decode), ids, size)) == whole
    words, run = [], b""
    for token in [*ids, 0]:
        if 3 <= token < 259:
            run += bytes_of(token)
            continue
        marked = run.decode("utf-8", "surrogateescape")
        words += [
            "".join("\ufffd" if "\udc80" <= char <= "\udcff" else char for char in marked),
            bytes_of(token).decode(),
        ]
        run = b""
    expected = "".join(words[:-1])
    assert whole == expected.removeprefix(" ")


@given(ids=broken, stop=st.sampled_from(["\ufffd", "\n", "A", "a\ufffd", "😀é", " a"]), include=st.booleans())
@settings(max_examples=300, deadline=None)
def test_stop_strings_end_the_text_where_the_whole_has_them(ids, stop, include):
    decode = decoder_of(FALLBACK)
    params = SamplingParams(max_tokens=1000, stop=[stop], include_stop_str_in_output=include)
    output = OutputStream(params, Detokenizer(decode), eos_token_ids=())
    pieces = [output.push([token]) for token in ids]
    pieces.append(output.abort())
    whole = decode(ids)
    found = whole.find(stop)
    end = len(whole) if found < 0 else found + include * len(stop)
    assert "".join(pieces) == output.text == whole[:end]
    assert output.stop_reason == (stop if found >= 0 else None)


def test_whole_texts_of_broken_bytes(tokenizer):
    """A word's bytes stay beside a broken one; transformers would lose them."""
    fast = tokenizer.backend.backend_tokenizer
    ids = [fast.token_to_id(f"<0x{byte:02X}>") for byte in (0x41, 0xE9, 0x42)]
    assert tokenizer.decode(ids) == "".join(stream(tokenizer.detokenizer(), ids, 1)) == "A\ufffdB"


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
