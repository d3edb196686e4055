"""Text of vocabularies that spell rare characters in tokens of one byte each, such as `<0xE2>`.

The tokenizers library turns a whole run of such tokens into U+FFFD where any of it is no UTF-8, also characters
that were complete: what has been streamed would be taken back. Here complete characters stay, and each other byte is
one U+FFFD.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"


def decoder_of(fast: Any) -> Callable[[Sequence[int]], str]:
    """Return the function from ids to text, special tokens included, of a `tokenizers.Tokenizer`."""

    def plain(ids: Sequence[int]) -> str:
        return fast.decode(list(ids), skip_special_tokens=False)

    if fast.decoder is None or b"ByteFallback" not in fast.decoder.__getstate__():
        return plain

    def decode(ids: Sequence[int]) -> str:
        text = plain(ids)
        if _REPLACEMENT not in text:
            return text
        return fast.decoder.decode(
            list(_repaired([token for token in map(fast.id_to_token, ids) if token is not None]))
        )

    return decode


def _repaired(tokens: Sequence[str]) -> Iterator[str]:
    """Yield the tokens with U+FFFD in place of bytes that belong to no character."""
    run: list[int] = []
    for token in (*tokens, ""):
        byte = _BYTE.fullmatch(token)
        if byte is not None:
            run.append(int(byte[1], 16))
            continue
        for character in bytes(run).decode("utf-8", "surrogateescape"):
            broken = "\udc80" <= character <= "\udcff"
            yield from (_REPLACEMENT,) if broken else (f"<0x{value:02X}>" for value in character.encode())
        run = []
        if token:
            yield token
