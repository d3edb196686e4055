"""Tokenizers against transformers' own, from folders and from GGUF files."""

import io
import json
import shutil
import sys
from pathlib import Path

import gguf
import pytest

from apex_jax.models import CheckpointError, Tokenizer
from apex_jax.models.loading.gguf_file import GGUFFile, open_gguf
from apex_jax.models.loading.registry import REGISTERED, cache_folder
from apex_jax.models.tokenization.gguf_tokenizer import tokenizer_from_gguf
from apex_jax.models.tokenization.tokenizer_file import check_pieces

SMOLLM = cache_folder() / REGISTERED["smollm2-135m-instruct"].file

TEXTS = [
    "Once upon a time, there was a little girl.",
    "  leading and  double   spaces ",
    "Tabs\tand\nnewlines\r\n\n\n  indented",
    "I'm sure they've said it's 3.14159, or 2,718 in 2024 — isn't it?",
    "def f(x):\n    return x**2  # power",
    "Ünïcödé, 漢字, العربية, हिन्दी, 😀👨\u200d👩\u200d👧",
    "<|im_start|>user\nhi<|im_end|>\n<s>inner</s>",
    "",
]


@pytest.fixture(scope="module")
def smollm():
    """The file's header and our tokenizer of it."""
    if not SMOLLM.is_file():
        pytest.skip(f"{SMOLLM.name} is not in the cache folder {SMOLLM.parent}")
    file = open_gguf(SMOLLM)
    return file, Tokenizer(tokenizer_from_gguf(file))


@pytest.mark.parametrize("text", TEXTS)
def test_folder_equals_transformers(stories, text):
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.from_folder(stories), AutoTokenizer.from_pretrained(stories)
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ids[0] == 1
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == 512


def test_model_without_chat_template(stories):
    tokenizer = Tokenizer.from_folder(stories)
    assert tokenizer.chat_template is None
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def with_code(stories, folder, **config):
    """Copy a folder, and let its tokenizer ask for code that leaves a mark where it is run; return the mark's place."""
    shutil.copytree(stories, folder)
    mark = folder / "ran"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own:\n    pass\n", encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"auto_map": {"AutoTokenizer": ["code.Own", "code.Own"]}, **config}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return mark


@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
def test_code_of_a_folder_is_ignored_where_its_kind_is_known(stories, tmp_path, monkeypatch, place):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 8))
    mark = with_code(stories, tmp_path / "model")
    if place == "config.json":
        shutil.copy(stories / "tokenizer_config.json", tmp_path / "model")
        settings = {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoTokenizer": ["code.Own", None]}}
        (tmp_path / "model" / place).write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path / "model")
    assert tokenizer.encode(TEXTS[0]) == Tokenizer.from_folder(stories).encode(TEXTS[0])
    assert not mark.exists()
    assert len(sys.stdin.read()) == 16


def test_code_of_a_folder_is_refused_where_nothing_else_reads_it(stories, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 8))
    mark = with_code(stories, tmp_path / "model", tokenizer_class="OwnTokenizer")
    with pytest.raises(CheckpointError, match=r"code of its own \(auto_map"):
        Tokenizer.from_folder(tmp_path / "model")
    assert not mark.exists()
    assert len(sys.stdin.read()) == 16


def test_folder_without_tokenizer(tmp_path):
    assert Tokenizer.from_folder(tmp_path) is None


def stories_as_gguf(path: Path, folder: Path) -> GGUFFile:
    """Write the vocabulary alone, as llama.cpp's converter takes it from tokenizer.model: pieces, scores, types."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tests = {2: model.is_unknown, 3: model.is_control, 6: model.is_byte}
    kinds = [next((kind for kind, test in tests.items() if test(index)), 1) for index in range(len(model))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(index) for index in range(len(model))])
    writer.add_token_scores([model.get_score(index) for index in range(len(model))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return open_gguf(path)


@pytest.mark.parametrize("text", [text for text in TEXTS if "<" not in text])
def test_sentence_piece_in_gguf_equals_sentencepiece(tmp_path, stories, text):
    sentencepiece = pytest.importorskip("sentencepiece", reason="compares with Google's own library")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(stories / "tokenizer.model"))
    ours = Tokenizer(tokenizer_from_gguf(stories_as_gguf(tmp_path / "vocabulary.gguf", stories)))
    ids = ours.encode(text)
    assert ids == [theirs.bos_id(), *theirs.encode(text)]
    assert ours.decode(ids) == theirs.decode(ids[1:])


def test_smollm_equals_transformers_reading_the_same_file(smollm):
    """On texts with at most one space before a digit: transformers does not know this vocabulary's rule for digits."""
    from transformers import AutoTokenizer

    _, ours = smollm
    theirs = AutoTokenizer.from_pretrained(SMOLLM.parent, gguf_file=SMOLLM.name)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert ours.vocab_size == len(theirs) == 49_152
    chat = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]
    assert ours.encode_chat(chat) == theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def test_smollm_splits_digits_off(smollm):
    """SmolLM2's tokenizer.json cuts each digit off first, so that two spaces before one stay together."""
    file, ours = smollm
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert [tokens[token] for token in ours.encode("a  42")] == ["a", "ĠĠ", "4", "2"]


def test_smollm_special_tokens_vanish_from_text(smollm):
    file, ours = smollm
    ids = ours.encode("<|im_start|>user<repo_name>x<|im_end|>")
    assert ids[0] == 1
    assert ids[-1] == 2
    assert ours.decode(ids) == "userx"
    detokenizer = ours.detokenizer()
    assert detokenizer.push(ids) + detokenizer.finish() == "userx"
    assert ours.chat_template == file.metadata["tokenizer.chat_template"]
    assert ours.backend.eos_token_id == 2


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({}, "has no vocabulary"),
        ({"model": "t5", "tokens": ["a"]}, "tokenizer of kind 't5'; implemented: 'gpt2', 'llama'"),
        ({"model": "gpt2", "tokens": ["a"], "pre": "qwen2"}, "rule 'qwen2'; implemented: llama-bpe"),
        ({"model": "gpt2", "tokens": ["a"], "pre": "smollm", "merges": ["a b"]}, "damaged vocabulary"),
        ({"model": "llama", "tokens": ["a"]}, "damaged vocabulary: KeyError\\('scores'\\)"),
        ({"model": "llama", "tokens": ["a"], "scores": [0.0], "bos_token_id": 9}, "damaged vocabulary: IndexError"),
        ({"model": "llama", "tokens": ["a"], "scores": [0.0], "bos_token_id": -1}, "there is no token bos_token = -1"),
        ({"model": "llama", "tokens": ["a" * 1_000_000], "scores": [0.0]}, "the longest of its tokens has 1,000,000"),
        ({"model": "llama", "tokens": ["a" * 999] * 9999, "scores": [0.0]}, "and all have 9,989,001"),
        ({"model": "llama", "tokens": 7}, "damaged vocabulary: TypeError"),
        ({"model": "llama", "tokens": [7], "scores": ["x"]}, "damaged vocabulary: TypeError"),
        ({"model": "gpt2", "tokens": ["a"], "pre": ["x"]}, r"splits text by the rule \['x'\]"),
        ({"model": "gpt2", "tokens": ["a"], "pre": "smollm", "merges": ["a"]}, "damaged vocabulary"),
        ({"model": "x" * 10_000, "tokens": ["a"]}, r"tokenizer of kind 'x{199}\.\.\.;"),
    ],
)
def test_vocabularies_not_implemented(metadata, complaint):
    file = GGUFFile(
        path=Path("toy.gguf"),
        metadata={f"tokenizer.ggml.{key}": value for key, value in metadata.items()},
        tensors={},
    )
    with pytest.raises(CheckpointError, match=complaint):
        tokenizer_from_gguf(file)


def test_a_chat_template_that_is_no_text_in_gguf():
    settings = {"model": "gpt2", "pre": "smollm", "tokens": ["a"]}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in settings.items()}
    file = GGUFFile(path=Path("toy.gguf"), metadata=metadata | {"tokenizer.chat_template": 7}, tensors={})
    with pytest.raises(CheckpointError, match=r"toy\.gguf has the chat template 7; a text is needed"):
        tokenizer_from_gguf(file)


def parts(**changes):
    """A tokenizer.json."""
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model, **changes})


def replacement(old, new):
    """A step of a tokenizer.json."""
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("tokenizer.json", "[" * 100_000, r"tokenizer\.json is not valid JSON: it nests deeper"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer.json", parts(model={"type": "BPE", "vocab": {"a": 2**40}, "merges": []}), "cannot be read"),
        ("tokenizer.json", parts(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]}), "cannot be read"),
        (
            "tokenizer.json",
            parts(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "cannot be read: PanicException",
        ),
        (
            "tokenizer.json",
            parts(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "u"}),
            r"cannot read this text: WordLevel error: Missing \[UNK\]",
        ),
        (
            "tokenizer.json",
            parts(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 99}),
            "tokenizer.json cannot be used: its pre_tokenizer has 100 steps; at most 32 are allowed",
        ),
        (
            "tokenizer.json",
            parts(normalizer={"type": "Sequence", "normalizers": [replacement("a", "aaaaaaaaaa")] * 9}),
            "its normalizer makes texts 1,000,000,000 times as long; at most 1,000 is allowed",
        ),
        ("tokenizer.json", parts(normalizer=replacement("", "a" * 2000)), "its normalizer makes texts 2,001 times"),
        (
            "tokenizer.json",
            parts(post_processor={"type": "TemplateProcessing", "single": ["$A"] * 99, "special_tokens": {}}),
            "its post_processor adds 99 tokens at once; at most 32 are allowed",
        ),
        (
            "tokenizer.json",
            "[" + "1," * 5_000_000 + "1]",
            "tokenizer.json has some 5,000,001 values; at most 4,000,000",
        ),
        ("tokenizer_config.json", '{"a": [' + "1," * 200_000 + "1]}", "tokenizer_config.json has some 200,002 values"),
        (
            "tokenizer.json",
            parts(model={"type": "BPE", "vocab": {"a" * 2000: 0}, "merges": []}),
            "a token has 2,000 characters; at most 1,024 are read",
        ),
        ("vocab.json", json.dumps({"a" * 2000: 0}), "a token has 2,000 characters; at most 1,024 are read"),
        ("tokenizer.model", "bG9uZw== 1\n" + "YQ" * 999 + " 2\n", "a token has 2,000 characters; at most 1,024"),
        (
            "tokenizer.json",
            parts(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 2**32}),
            "cannot (write these tokens|decode): PanicException",
        ),
        ("tokenizer_config.json", '{"fast_tokenizer_files": ["../tokenizer.4.json"]}', "not names in the folder"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json is not valid JSON: it nests deeper"),
        (
            "tokenizer_config.json",
            '{"a": ' + "9" * 400 + "}",
            "tokenizer_config.json is not valid JSON: a number of 400",
        ),
        ("tokenizer_config.json", "[]", "tokenizer_config.json must hold a JSON object, holds list"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "cannot read this text: TypeError"),
        ("tokenizer_config.json", '{"chat_template": 7}', "a chat template must be a text, or several by name, got 7"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "cannot be read"),
        ("special_tokens_map.json", '{"eos_token": "\\ud800"}', "special_tokens_map.json is not valid JSON: half a"),
        ("added_tokens.json", "{" * 5000, "added_tokens.json is not valid JSON"),
    ],
)
def test_damaged_files_of_a_folder(stories, tmp_path, file, text, complaint):
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=complaint):
        Tokenizer.from_folder(folder)


def field(number, kind, *content):
    """A field of a SentencePiece model: a number, or bytes with their length."""
    return b"".join([variable(number << 3 | kind), *(variable(len(part)) + part for part in content)])


def variable(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + variable(value >> 7)


@pytest.mark.parametrize(
    ("begin", "complaint"),
    [
        (b"", None),
        (field(1, 2, field(1, 2, b"a" * 1_000_000)), "a token has 1,000,004 bytes; at most 1,024 are read"),
        (field(5, 2, b"b" * 5000) + field(1, 2, field(1, 2, b"a" * 2000)), "a token has 2,003 bytes"),
        (field(9, 5) + b"1234" + field(9, 1) + b"12345678" + field(9, 0) + b"1", None),
        (field(9, 3), "is no SentencePiece model: a field of kind 3 at byte 1"),
        (field(1, 2, b"") * 400_001, "it has more than 400,000 tokens"),
        (b"\xff" * 20, "is no SentencePiece model: a number is cut at byte 10"),
        (field(9, 2) + variable(2**40), "is no SentencePiece model: a field ends at byte 1,099,5"),
    ],
)
def test_pieces_of_a_sentence_piece_model(stories, begin, complaint):
    content = begin + (stories / "tokenizer.model").read_bytes()
    if complaint is None:
        check_pieces(content)
    else:
        with pytest.raises(ValueError, match=complaint):
            check_pieces(content)


def test_files_of_gigabytes_are_not_read(stories, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(20 << 30)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 21,474,836,480 bytes; at most 67,108,864 are read"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(("flag", "begins"), [(None, True), (True, True), (False, False)])
def test_llama3_vocabulary_begins_with_bos(flag, begins):
    alphabet = [chr(0x61 + index) for index in range(26)]
    settings = {"model": "gpt2", "pre": "llama-bpe", "tokens": [*alphabet, "<bos>"], "token_type": [*[1] * 26, 3]}
    settings |= {"merges": [], "bos_token_id": 26} | ({} if flag is None else {"add_bos_token": flag})
    metadata = {f"tokenizer.ggml.{key}": value for key, value in settings.items()}
    tokenizer = Tokenizer(tokenizer_from_gguf(GGUFFile(path=Path("toy.gguf"), metadata=metadata, tensors={})))
    assert tokenizer.encode("abc") == [26, 0, 1, 2] if begins else [0, 1, 2]
    assert tokenizer.encode("<bos>a")[-2:] == [26, 0]
