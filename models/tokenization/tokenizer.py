"""Text to tokens and back: a thin face on transformers' tokenizers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .detokenizer import Detokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class Tokenizer:
    """A model's vocabulary, special tokens and chat template.

    Args:
        backend: a fast tokenizer of transformers; what this class does not offer can be asked of it.

    Raises:
        TypeError: `backend` is something else.
    """

    def __init__(self, backend: Any):
        from transformers import PreTrainedTokenizerFast

        if not isinstance(backend, PreTrainedTokenizerFast):
            raise TypeError(
                f"a tokenizer must be one of transformers' fast ones (PreTrainedTokenizerFast), got {backend!r}"
            )
        self.backend: Any = backend
        self._special = frozenset(token for token, added in backend.added_tokens_decoder.items() if added.special)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """Read the tokenizer of a folder in Hugging Face format; None where it has none.

        Code that comes with a folder (`auto_map`) is never run: it is ignored where transformers knows the tokenizer's
        kind without it.

        Raises:
            CheckpointError: its files are damaged, or it cannot be read without code of its own.
        """
        if not any((folder / file).is_file() for file in _FILES):
            return None
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            backend = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exceptions for damaged files
            if "trust_remote_code" in str(error):
                raise CheckpointError(
                    f"the tokenizer in {folder} needs code of its own (auto_map in its tokenizer_config.json or "
                    "config.json), which is never run; tokenizers of classes that transformers has are allowed"
                ) from error
            raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
        if not isinstance(backend, PreTrainedTokenizerFast):
            raise CheckpointError(f"{folder} has a tokenizer of type {type(backend).__name__}; a fast one is needed")
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return len(self.backend)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a conversation; None for models without one."""
        return self.backend.chat_template

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the special tokens the model expects around it (BOS)."""
        return self.backend.encode(text)

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Return the tokens of a conversation of {"role", "content"} messages, written by the chat template.

        Raises:
            ValueError: the model has no chat template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError("this model has no chat template: give the prompt as text or token ids")
        from jinja2 import TemplateError

        try:
            text = self.backend.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return self.backend.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens."""
        return self.backend.decode(tokens, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def detokenizer(self, *, skip_special_tokens: bool = True, context: Sequence[int] = ()) -> Detokenizer:
        """Return a fresh incremental decoder; see `Detokenizer` for `context`."""
        fast = self.backend.backend_tokenizer
        return Detokenizer(
            lambda tokens: fast.decode(tokens, skip_special_tokens=False),
            skip=self._special if skip_special_tokens else frozenset(),
            context=context,
        )
