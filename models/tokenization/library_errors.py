"""Errors of the tokenizers library, which is written in Rust and has no kinds of error."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...files.bounded_json import brief
from ..errors import CheckpointError


@contextmanager
def as_checkpoint_errors(what: str) -> Iterator[None]:
    """Turn what the library raises into a `CheckpointError` that begins with `what`.

    For what does not fit together it raises bare `Exception`s; where its own code is wrong about a file it panics,
    which is no `Exception` and would pass through everything up to the end of the program.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {_said(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return brief(error) if type(error) is Exception else repr(error)[:1000]
