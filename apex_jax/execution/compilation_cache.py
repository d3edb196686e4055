"""Compiled programs on disk: what was compiled once for this machine is read the next time."""

from __future__ import annotations

import hashlib
import logging
import os
from importlib.metadata import version
from pathlib import Path

import jax
from filelock import FileLock, Timeout

from ..machine.processor import instructions
from ..models.loading.registry import cache_folder

MOST_BYTES = 2 << 30
"""What the folder may take; programs that have not been used for longest go first."""

LONGEST_WAIT_S = 5
"""For other processes that write there."""

_logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """Return where programs for this machine are kept: what was compiled for one processor may not run on another."""
    made_for = f"{version('apex-jax')}, {version('jaxlib')}, {instructions()}"
    return cache_folder() / "compiled" / hashlib.sha256(made_for.encode()).hexdigest()[:16]


def keep_compiled(folder: str | os.PathLike[str] | None) -> None:
    """Let JAX keep compiled programs in a folder, for the whole process; with None, or where a program has set a cache
    of its own, everything stays as it is.

    A folder that cannot be written is done without, and so is any where the user has no home.
    """
    if folder is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    path = Path(folder)
    try:
        # JAX asks for it when it writes, and would warn at each program.
        Path.home()
        path.mkdir(parents=True, exist_ok=True)
        usable = os.access(path, os.W_OK | os.X_OK)
    except (OSError, RuntimeError) as error:
        usable, reason = False, str(error)
    else:
        reason = f"{path} cannot be written"
    if not usable:
        _logger.info("Compiled programs are not kept: %s", reason)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # An engine has many programs that take less than the second from which on JAX keeps one.
    if jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 1.0:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.config.values["jax_compilation_cache_max_size"] == -1:
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    _drop_cut_entries(path)


def _drop_cut_entries(folder: Path) -> None:
    """Remove what a process was killed over: JAX would neither read nor replace it, and warn each time.

    It writes an entry, and then when it was last used, holding the folder's lock.
    """
    try:
        with FileLock(folder / ".lockfile", timeout=LONGEST_WAIT_S):
            for entry in folder.glob("*-cache"):
                if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
                    entry.unlink()
    except (OSError, Timeout) as error:
        _logger.info("%s may have programs that were cut short: %s", folder, error)
