"""Text from tokens as they come."""

from collections.abc import Callable, Iterable, Sequence

_REPLACEMENT = "\ufffd"
# An unfinished UTF-8 character has at most three bytes, each of which may show as one replacement character.
_LONGEST_UNFINISHED = 3
# More tokens than this without a clean end come only from text whose tokens straddle characters; the window is cut.
_WINDOW = 16


class Detokenizer:
    """Turns a growing list of tokens into pieces of text that only ever grow.

    No piece ends inside a UTF-8 character, and each token is decoded in a window of its neighbours, so that spaces
    come out as they do when everything is decoded at once, at a cost that does not depend on how much came before.
    The pieces together equal the decoded whole, whatever the tokens, if `decode` leaves a character as it is when
    broken bytes follow it.

    Args:
        decode: from token ids to text; bytes that are not (yet) UTF-8 as U+FFFD.
        skip: tokens that leave no trace in the text.
        context: tokens before the first one pushed (the prompt's last ones), whose text is not repeated. Where a
            vocabulary writes a space as part of the next word, they decide whether the first piece begins with one.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, skip: frozenset[int] = frozenset(), context: Sequence[int] = ()
    ):
        self._decode = decode
        self._skip = skip
        self._window = [token for token in context[-_WINDOW:] if token not in skip]
        self._window_text = decode(self._window) if self._window else ""
        self._pending: list[int] = []
        self._emitted = 0

    def push(self, tokens: Iterable[int]) -> str:
        """Take further tokens; return the text they complete, which may be empty."""
        return "".join([self._push(token) for token in tokens if token not in self._skip])

    def finish(self) -> str:
        """Return what is held back; an unfinished character as U+FFFD."""
        rest = self._fresh()[self._emitted :] if self._pending else ""
        self._advance()
        return rest

    def _push(self, token: int) -> str:
        self._pending.append(token)
        fresh = self._fresh()
        unfinished = len(fresh) - len(fresh.rstrip(_REPLACEMENT))
        stable = max(self._emitted, len(fresh) - min(unfinished, _LONGEST_UNFINISHED))
        piece = fresh[self._emitted : stable]
        self._emitted = stable
        if not unfinished:
            self._advance()
        elif len(self._pending) > _WINDOW:
            self._cut(held=len(fresh) - stable)
        return piece

    def _fresh(self) -> str:
        """Return the pending tokens' text as it stands after the window."""
        text = self._decode(self._window + self._pending)
        if text.startswith(self._window_text):
            return text[len(self._window_text) :]
        # A run of byte tokens that is invalid as a whole has taken the window's own characters with it.
        return self._decode(self._pending)

    def _advance(self) -> None:
        """Let the pending tokens, all of whose text is out, be the context of the next ones."""
        self._window, self._pending, self._emitted = self._pending, [], 0
        self._window_text = self._decode(self._window) if self._window else ""

    def _cut(self, held: int) -> None:
        """Forget all but the last tokens, of whose text only the last `held` characters are not out yet."""
        self._window, self._window_text = [], ""
        self._pending = self._pending[-_WINDOW // 2 :]
        self._emitted = max(0, len(self._decode(self._pending)) - held)
