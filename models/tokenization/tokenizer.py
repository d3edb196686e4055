"""Text to tokens and back: a thin face on transformers' tokenizers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files.bounded_json import shown
from ..errors import ChatTemplateError, CheckpointError
from .byte_tokens import decoder_of
from .chat_template import ChatTemplate
from .detokenizer import Detokenizer
from .library_errors import as_checkpoint_errors
from .tokenizer_file import check_folder

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
_AS_JSON = "{{ messages|tojson }}"


class Tokenizer:
    """A model's vocabulary, special tokens and chat template.

    Args:
        backend: a fast tokenizer of transformers; what this class does not offer can be asked of it.

    Raises:
        TypeError: `backend` is something else.
        CheckpointError: its chat template is no text.
    """

    def __init__(self, backend: Any):
        from transformers import PreTrainedTokenizerFast

        if not isinstance(backend, PreTrainedTokenizerFast):
            raise TypeError(
                f"a tokenizer must be one of transformers' fast ones (PreTrainedTokenizerFast), got {backend!r}"
            )
        _check_chat_template(backend.chat_template)
        self.backend: Any = backend
        self._template = ChatTemplate("", "")
        self._special = frozenset(token for token, added in backend.added_tokens_decoder.items() if added.special)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """Read the tokenizer of a folder in Hugging Face format; None where it has none.

        Code that comes with a folder (`auto_map`) is never run: it is ignored where transformers knows the tokenizer's
        kind without it.

        Raises:
            CheckpointError: its files are damaged or too large, or it cannot be read without code of its own.
        """
        if not any((folder / file).is_file() for file in _FILES):
            return None
        from transformers import PreTrainedTokenizerFast

        check_folder(folder)
        with as_checkpoint_errors(f"the tokenizer in {folder} cannot be read"):
            backend = _read(folder)
            if not isinstance(backend, PreTrainedTokenizerFast):
                kind = type(backend).__name__
                raise CheckpointError(f"{folder} has a tokenizer of type {kind}; a fast one is needed")
            tokenizer = cls(backend)
            # What does not fit together shows here, rather than with somebody's prompt.
            ids = tokenizer.encode("Once upon a time, 1 2 3.")
            tokenizer.decode(ids)
            tokenizer.detokenizer(skip_special_tokens=False).push(ids)
            return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return len(self.backend)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a conversation; None for models without one."""
        return self.backend.chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of a prompt, with the special tokens the model expects around it (BOS) if they are wanted.

        Raises:
            CheckpointError: the tokenizer's own parts do not fit together.
        """
        return self._encode(text, add_special_tokens=add_special_tokens)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens of a conversation of {"role", "content"} messages, written by the chat template.

        Args:
            messages: the conversation.
            add_generation_prompt: end with what begins an answer.
            continue_final_message: end with the last message's content, for the model to go on with it.
            chat_template: another template than the model's.
            tools: what the model may call, as JSON schemas.
            chat_template_kwargs: further values of the template's.

        Raises:
            ValueError: the model has no chat template, or both ends are asked for.
            ChatTemplateError: the template refuses the messages, is none, or does more than its limits allow.
            CheckpointError: as in `encode`.
        """
        if self.chat_template is None and chat_template is None:
            raise ValueError("this model has no chat template: give the prompt as text or token ids")
        if add_generation_prompt and continue_final_message:
            raise ValueError("continue_final_message needs add_generation_prompt=False: a prompt has one end, got both")
        special = self.backend.special_tokens_map
        plain = self._plain(messages)
        if continue_final_message:
            plain = self._marked(plain)
        text = self._chat_template(chat_template).render(
            {
                **{name: value if isinstance(value, list) else str(value) for name, value in special.items()},
                **(chat_template_kwargs or {}),
                "messages": plain,
                "tools": None if tools is None else self._plain(tools),
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        if continue_final_message:
            text = self._cut(text)
        return self._encode(text, add_special_tokens=False)

    def _marked(self, messages: list[Any]) -> list[Any]:
        """Return messages whose last content ends with a mark that `_cut` finds, as transformers does it."""
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str):
            raise ValueError(f"continue_final_message needs a last message with a text, got {shown(messages[-1:])}")
        return [*messages[:-1], {**messages[-1], "content": content + _MARK}]

    def _cut(self, text: str) -> str:
        end = text.rfind(_MARK.strip())
        if end < 0:
            raise ChatTemplateError(f"the chat template of {self._name} leaves the end of the last message out")
        return text[:end] if text.startswith(_MARK, end) else text[:end].rstrip()

    @property
    def _name(self) -> str:
        return str(self.backend.name_or_path or type(self.backend).__name__)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with as_checkpoint_errors(f"the tokenizer of {self._name} cannot read this text"):
            return self.backend.encode(text, add_special_tokens=add_special_tokens)

    def _chat_template(self, given: str | None = None) -> ChatTemplate:
        """Return the template in force, compiled once; programs may give the backend another one."""
        try:
            source = self.backend.get_chat_template() if given is None else given
        except ValueError as error:
            raise ChatTemplateError(f"the chat templates of {self._name}: {error}") from error
        if source != self._template.source:
            self._template = ChatTemplate(source, self._name)
        return self._template

    def _plain(self, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return messages as transformers gives them to templates, which differs between its versions."""
        try:
            text = self.backend.apply_chat_template(list(messages), chat_template=_AS_JSON, tokenize=False)
            return json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ChatTemplateError(
                f"the chat template of {self._name} cannot be given these messages: {error}"
            ) from error

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens: what `detokenizer` gives piece by piece.

        Where a vocabulary spells bytes, those that are no UTF-8 are U+FFFD each, and complete characters beside them
        stay; transformers gives up the whole run.

        Raises:
            CheckpointError: as in `encode`.
        """
        hidden = self._special if skip_special_tokens else frozenset()
        with as_checkpoint_errors(f"the tokenizer of {self._name} cannot write these tokens"):
            return decoder_of(self.backend.backend_tokenizer)([token for token in tokens if token not in hidden])

    def detokenizer(self, *, skip_special_tokens: bool = True, context: Sequence[int] = ()) -> Detokenizer:
        """Return a fresh incremental decoder; see `Detokenizer` for `context`, and `decode` for errors."""
        text_of = decoder_of(self.backend.backend_tokenizer)
        errors = as_checkpoint_errors(f"the tokenizer of {self._name} cannot decode")

        def decode(tokens: Sequence[int]) -> str:
            with errors:
                return text_of(tokens)

        return Detokenizer(
            decode,
            skip=self._special if skip_special_tokens else frozenset(),
            context=context,
        )


def _read(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise CheckpointError(
            f"the tokenizer in {folder} needs code of its own (auto_map in its tokenizer_config.json or "
            "config.json), which is never run; tokenizers of classes that transformers has are allowed"
        ) from error


def _check_chat_template(template: Any) -> None:
    texts = [*template, *template.values()] if isinstance(template, dict) else [template]
    if template is not None and not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"a chat template must be a text, or several by name, got {shown(template)}")
