"""Errors of the tokenizers library, which is written in Rust and has no kinds of error."""

from ...files.bounded_json import brief
from ..errors import CheckpointError


class as_checkpoint_errors:
    """Turns what the library raises into a `CheckpointError`; may be entered any number of times.

    For what does not fit together it raises bare `Exception`s; where its own code is wrong about a file it panics,
    which is no `Exception` and would pass through everything up to the end of the program. Interrupts stay what they
    are.

    Args:
        what: how the message begins.
    """

    def __init__(self, what: str):
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CheckpointError):
            return
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            said = brief(error) if type(error) is Exception else repr(error)[:1000]
            raise CheckpointError(f"{self._what}: {said}") from error
