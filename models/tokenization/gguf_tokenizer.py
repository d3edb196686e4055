"""A transformers tokenizer from the vocabulary in a GGUF file."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ...files.bounded_json import shown
from ..errors import CheckpointError
from ..loading.gguf_file import GGUFFile
from .library_errors import as_checkpoint_errors
from .tokenizer_file import LONGEST_TOKEN

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_MOST_CHARACTERS = 1 << 23

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_ONE_DIGIT = ("smollm",)
_GPT2 = ("gpt-2", "gpt2")


def tokenizer_from_gguf(file: GGUFFile) -> PreTrainedTokenizerFast:
    """Build the tokenizer the file describes: byte-level BPE of Llama 3 and SmolLM, or SentencePiece BPE of Llama 2.

    Raises:
        CheckpointError: no vocabulary, a damaged one, or one of a kind that is not implemented, by name.
    """
    settings = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in file.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    if not settings.get("tokens"):
        raise CheckpointError(f"{file.path} has no vocabulary")
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file.path} has the chat template {shown(template)}; a text is needed")
    with as_checkpoint_errors(f"{file.path} has a damaged vocabulary"):
        tokenizer, special = _build(file, settings)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            name_or_path=str(file.path),
            chat_template=template,
            clean_up_tokenization_spaces=False,
            **special,
        )


def _build(file: GGUFFile, settings: dict[str, Any]) -> tuple[Tokenizer, dict[str, str | None]]:
    """Return the tokenizer and its special tokens, by the names transformers has for them."""
    kind, tokens = settings.get("model"), settings["tokens"]
    if kind == "gpt2":
        tokenizer, begins = _byte_level(file, settings), settings.get("pre") in _LLAMA3
    elif kind == "llama":
        tokenizer, begins = _sentence_piece(settings), True
    else:
        raise CheckpointError(f"{file.path} has a tokenizer of kind {shown(kind)}; implemented: 'gpt2', 'llama'")
    types = settings.get("token_type") or [_NORMAL] * len(tokens)
    pairs = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in pairs if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t, k in pairs if k == _USER_DEFINED])

    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {ours: settings.get(f"{theirs}_token_id") for ours, theirs in names.items()}
    if below := [f"{name} = {token}" for name, token in ids.items() if token is not None and not token >= 0]:
        raise ValueError(f"there is no token {below[0]}")
    special = {name: None if token is None else tokens[token] for name, token in ids.items()}
    if settings.get("add_bos_token", begins) and ids["bos_token"] is not None:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids["bos_token"])]
        )
    return tokenizer, special


def _byte_level(file: GGUFFile, settings: dict[str, Any]) -> Tokenizer:
    pre = settings.get("pre")
    if pre in _LLAMA3:
        words = pre_tokenizers.Split(Regex(_LLAMA3_WORDS), behavior="isolated")
        splitter = [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif pre in _ONE_DIGIT:
        digits = pre_tokenizers.Digits(individual_digits=True)
        splitter = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre in _GPT2:
        splitter = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        known = ", ".join((*_LLAMA3, *_ONE_DIGIT, *_GPT2))
        raise CheckpointError(f"{file.path} splits text by the rule {shown(pre)}; implemented: {known}")
    vocabulary = {token: index for index, token in enumerate(settings["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in settings.get("merges", ())]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _LLAMA3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitter)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(settings: dict[str, Any]) -> Tokenizer:
    """Build what Llama 2's tokenizer.json holds: BPE over characters with a byte fallback, spaces as U+2581.

    The space in front of a text is added even where it begins with one, as SentencePiece does.
    """
    tokens, prefix = settings["tokens"], settings.get("add_space_prefix", True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[settings.get("unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=_merges(settings), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prefix else [spaces])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return tokenizer


def _merges(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Recover the merges of a SentencePiece model from its scores: the best token that two others make comes first."""
    if "merges" in settings:
        return [tuple(merge.split(" ", 1)) for merge in settings["merges"]]
    tokens, scores = settings["tokens"], settings["scores"]
    types = settings.get("token_type") or [_NORMAL] * len(tokens)
    longest, total = max(map(len, tokens)), sum(map(len, tokens))
    if longest > LONGEST_TOKEN or total > _MOST_CHARACTERS:
        raise ValueError(
            f"the longest of its tokens has {longest:,} characters, and all have {total:,}; at most "
            f"{LONGEST_TOKEN:,} and {_MOST_CHARACTERS:,} are read"
        )
    known = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    found = [
        (-score, -cut, token[:cut], token[cut:])
        for token, score in zip(tokens, scores, strict=True)
        if token in known
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
