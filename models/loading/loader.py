"""From a model's name to configuration, weights and tokenizer."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ...files.bounded_json import listed
from ..config import LlamaConfig
from ..errors import CheckpointError, ModelNotFoundError
from ..initialise import random_weights
from ..llama import Weights
from ..presets import PRESETS
from ..tokenization.tokenizer import Tokenizer
from . import checks
from .hf_names import EMBED, HEAD, Shape, assemble, checkpoint_shapes, join_kernels, join_vectors, tensor_problems
from .params import DTYPES
from .registry import REGISTERED, fetch
from .safetensors_source import INDEX, SINGLE, SafetensorsSource

LOAD_FORMATS = ("auto", "dummy")
_HUB_FILES = [
    *("config.json", "generation_config.json", SINGLE, INDEX),
    *("*-of-*.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "chat_template.json", "chat_template.jinja"),
]
_HUB_DUPLICATES = ["*/*", "consolidated*"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        name: what it was asked for by.
        config: its sizes and settings.
        weights: its arrays, on the device asked for.
        tokenizer: None for a preset, which has sizes and no vocabulary.
    """

    name: str
    config: LlamaConfig
    weights: Weights
    tokenizer: Tokenizer | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model whose sizes are known and whose weights are not in memory yet.

    Attributes:
        name, config, tokenizer: as in `LoadedModel`.
        dtype: of the weights.
        read: (seed, device) to the weights; see `load`.
    """

    name: str
    config: LlamaConfig
    tokenizer: Tokenizer | None
    dtype: jnp.dtype
    read: Callable[[int, Any], Weights]

    def load(self, *, seed: int = 0, device: Any = None) -> LoadedModel:
        """Read the weights; arguments and errors as in `load_model`."""
        weights = self.read(seed, device)
        return LoadedModel(name=self.name, config=self.config, weights=weights, tokenizer=self.tokenizer)


class TensorSource(Protocol):
    """Named tensors of a checkpoint, read one at a time."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each tensor, by Hugging Face name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Return one tensor; the caller drops it before reading many others."""
        ...


def load_model(
    model: str | Path,
    *,
    dtype: str = "auto",
    load_format: str = "auto",
    num_layers: int | None = None,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    device: Any = None,
) -> LoadedModel:
    """Load a model: `open_model`, then its weights.

    Args:
        model: a folder in Hugging Face format, a GGUF file (or a folder that holds just one), a registered name
            (`smollm2-135m-instruct`), a name on the Hugging Face hub ("owner/name"), or, with `load_format="dummy"`,
            a preset's name.
        dtype: "float32", "bfloat16" or "float16"; "auto" takes what the checkpoint's configuration states, float32
            where it states nothing.
        load_format: "auto" reads the weights; "dummy" draws random ones and needs only the configuration.
        num_layers: another number of layers than the configuration's; random weights only.
        revision: branch, tag or commit of a hub model, and of its tokenizer if that has no place of its own.
        tokenizer: where another tokenizer is: a folder, a file in one such as its `tokenizer.json`, a GGUF file, or a
            hub name; that of the model where None.
        seed: of random weights.
        device: the `jax.Device` that holds the weights; JAX's default where None.

    Raises:
        ModelNotFoundError: nothing answers to the name.
        CheckpointError: the files are damaged, incomplete, or hold a model that is not implemented.
        ValueError: an argument outside of what is allowed.
    """
    opened = open_model(
        model, dtype=dtype, load_format=load_format, num_layers=num_layers, revision=revision, tokenizer=tokenizer
    )
    return opened.load(seed=seed, device=device)


def open_model(
    model: str | Path,
    *,
    dtype: str = "auto",
    load_format: str = "auto",
    num_layers: int | None = None,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
) -> OpenedModel:
    """Find a model and read its configuration and tokenizer, so that its size can be judged before it is loaded.

    Arguments and errors are those of `load_model`.
    """
    _check_arguments(dtype, load_format, num_layers)
    name = str(model)
    if revision is not None and not _is_hub_name(model):
        raise ValueError(f"revision={revision!r} is one of a model on the hub (owner/name), got the model {name!r}")
    if load_format == "dummy" and name in PRESETS:
        checkpoint = _Checkpoint(config=PRESETS[name])
    else:
        checkpoint = _open(resolve(model, revision=revision))
    config, chosen = checkpoint.config, jnp.dtype(dtype if dtype != "auto" else checkpoint.dtype)
    if num_layers is not None:
        config = config.replace(num_hidden_layers=num_layers)
    source = checkpoint.source
    reader = checkpoint.tokenizer() if tokenizer is None else _other_tokenizer(tokenizer)

    def read(seed: int, device: Any) -> Weights:
        if load_format == "dummy" or source is None:
            return random_weights(config, seed, chosen, device=device)
        return read_weights(config, source(chosen), dtype=chosen, device=device)

    return OpenedModel(name=name, config=config, tokenizer=reader, dtype=chosen, read=read)


def _check_arguments(dtype: str, load_format: str, num_layers: int | None) -> None:
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype must be one of auto, {', '.join(DTYPES)}; got {dtype!r}")
    if load_format not in LOAD_FORMATS:
        raise ValueError(f"load_format must be one of {', '.join(LOAD_FORMATS)}; got {load_format!r}")
    if num_layers is not None and load_format != "dummy":
        raise ValueError("num_layers needs load_format='dummy': a checkpoint's own weights keep all of their layers")


def _other_tokenizer(place: str | Path) -> Tokenizer:
    path = resolve(place, revision=None)
    if path.is_file() and path.suffix != ".gguf":
        path = path.parent
    tokenizer = Tokenizer.from_folder(path) if path.is_dir() else _open_gguf(path).tokenizer()
    if tokenizer is None:
        raise CheckpointError(f"tokenizer={str(place)!r}: {path} has no tokenizer")
    return tokenizer


def _is_hub_name(model: str | Path) -> bool:
    """Whether a name can only be one of the hub."""
    there = os.path.exists(os.path.expanduser(model))
    return isinstance(model, str) and not there and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model) is not None


def resolve(model: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder or GGUF file of a model's name, fetching it if it is a registered or hub name.

    Args:
        model: see `load_model`.
        revision: of a hub name.

    Raises:
        ModelNotFoundError: nothing answers to the name, or it cannot be fetched.
    """
    name, path = str(model), Path(os.path.expanduser(model))
    if os.path.isdir(path):
        ggufs = sorted(path.glob("*.gguf"))
        return ggufs[0] if len(ggufs) == 1 and not (path / "config.json").is_file() else path
    if os.path.isfile(path):
        return path
    if name in REGISTERED:
        return fetch(name)
    if name in PRESETS:
        raise ModelNotFoundError(
            f"{name!r} is a preset of sizes without weights: use load_format='dummy' for random ones, "
            "or give the checkpoint's folder or hub name"
        )
    if _is_hub_name(model):
        return _from_hub(name, revision)
    raise ModelNotFoundError(
        f"no model {name!r}: not a file or folder here, not a hub name (owner/name); names known: "
        f"{', '.join(REGISTERED)}; presets for load_format='dummy': {', '.join(PRESETS)}"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_DUPLICATES)
    except (OSError, ValueError) as error:
        # Another tool may have kept fewer files, and all that are needed: what is not there is named when it is read.
        names = ("config.json", INDEX, SINGLE)
        kept = [try_to_load_from_cache(name, file, revision=revision) for file in names]
        if isinstance(kept[0], str) and any(isinstance(file, str) for file in kept[1:]):
            return Path(kept[0]).parent
        of = "" if revision is None else f", revision {revision!r},"
        raise ModelNotFoundError(
            f"{name!r}{of} is no folder here and could not be fetched from the Hugging Face hub: {error}"
        ) from error
    return Path(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    """What stands in the files, the tensors not opened yet: random weights need none."""

    config: LlamaConfig
    tokenizer: Callable[[], Tokenizer | None] = lambda: None
    source: Callable[[np.dtype], TensorSource] | None = None
    dtype: str = "float32"


def _open(path: Path) -> _Checkpoint:
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    raise CheckpointError(f"{path} is neither a folder nor a .gguf file")


def _open_folder(folder: Path) -> _Checkpoint:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: not a model in Hugging Face format")
    settings = checks.json_object(folder / "config.json")
    try:
        config = LlamaConfig.from_hf(settings)
        if (folder / "generation_config.json").is_file():
            ending = checks.json_object(folder / "generation_config.json").get("eos_token_id")
            ending = checks.token_ids("generation_config.json: eos_token_id", ending)
            config = config.replace(eos_token_ids=ending or config.eos_token_ids)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    stated = settings.get("dtype", settings.get("torch_dtype"))
    return _Checkpoint(
        config=config,
        tokenizer=lambda: Tokenizer.from_folder(folder),
        source=lambda dtype: SafetensorsSource(folder),
        dtype=stated if stated in DTYPES else "float32",
    )


def _open_gguf(path: Path) -> _Checkpoint:
    from ..tokenization.gguf_tokenizer import tokenizer_from_gguf
    from .gguf_file import open_gguf
    from .gguf_source import GGUFSource, config_from_gguf

    file = open_gguf(path)
    config = config_from_gguf(file)
    return _Checkpoint(
        config=config,
        tokenizer=lambda: Tokenizer(tokenizer_from_gguf(file)),
        source=lambda dtype: GGUFSource(file, config, dtype),
    )


def read_weights(config: LlamaConfig, source: TensorSource, *, dtype: np.dtype, device: Any = None) -> Weights:
    """Read a checkpoint tensor by tensor: never more than the model and the parts of one fused matrix in memory.

    Raises:
        CheckpointError: tensors that are missing, do not belong to the model or have a wrong shape, all by name.
    """
    found = {name: shape for name, shape in source.shapes.items() if not name.endswith("rotary_emb.inv_freq")}
    head = found.pop(HEAD, None) if config.tie_word_embeddings else None
    if problems := tensor_problems(checkpoint_shapes(config), found):
        raise CheckpointError("the checkpoint does not fit its configuration: " + listed(problems, "; "))
    if head is not None:
        _check_tied_head(source, head)

    def place(names: tuple[str, ...]) -> tuple[jax.Array, ...]:
        return tuple(jax.device_put(source.read(name), device) for name in names)

    # Waiting for each tensor bounds memory: dispatch would otherwise run ahead with all of their sources alive.
    return assemble(
        config,
        table=lambda name: jax.block_until_ready(jax.device_put(np.array(source.read(name), dtype), device)),
        vector=lambda names: jax.block_until_ready(_join_vectors(place(names), dtype)),
        kernel=lambda names: jax.block_until_ready(_join_kernels(place(names), dtype)),
    )


def _check_tied_head(source: TensorSource, shape: Shape) -> None:
    """Refuse a stored copy of the tied embedding that differs from it."""
    if shape != source.shapes[EMBED] or not np.array_equal(source.read(HEAD), source.read(EMBED)):
        raise CheckpointError(f"the configuration ties the head to the embedding, but {HEAD} differs from {EMBED}")


_join_vectors = functools.partial(jax.jit, static_argnums=1)(join_vectors)
_join_kernels = functools.partial(jax.jit, static_argnums=1)(join_kernels)
