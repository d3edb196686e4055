"""Every reader of a file that somebody else may have written: sound files, how they are spoilt, and what a caller does
with what has been read."""

import argparse
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from apex_jax import SamplingParams
from apex_jax.cli.errors import UserError
from apex_jax.cli.inputs import read_tasks
from apex_jax.models import ChatTemplateError, CheckpointError, LlamaConfig, Tokenizer
from apex_jax.models.loading import checks
from apex_jax.models.loading.gguf_file import open_gguf
from apex_jax.models.loading.gguf_source import GGUFSource, config_from_gguf
from apex_jax.models.loading.hf_names import checkpoint_shapes
from apex_jax.models.loading.safetensors_source import INDEX, SINGLE, SafetensorsSource
from apex_jax.models.rope import inverse_frequencies
from apex_jax.models.tokenization.chat_template import ChatTemplate
from apex_jax.models.tokenization.gguf_tokenizer import tokenizer_from_gguf
from apex_jax.scheduler import ProfileError, load_profile
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.cost_model.profile_io import decode, encode
from apex_jax.scheduler.simulation.recorded import read_trace
from apex_jax.tracing.trace_file import TraceError, load

from .mutations import mutate_bytes, mutate_json, template

CORPUS = Path(__file__).parent / "corpus"
MESSAGES = [{"role": "user", "content": " Hello, 42 "}, {"role": "assistant", "content": "ab\ncd"}]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one kind of file is fuzzed.

    Attributes:
        corpus: sound files; a folder's files are copied beside the one that is spoilt.
        mutate: from a file's content to a worse one.
        read: reads the file and uses what it holds.
        errors: what may be raised.
        cases: files in a test of some seconds.
    """

    corpus: list[Path]
    mutate: Callable[[Random, bytes], bytes]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    cases: int = 300
    place: Callable[[Path, Path], Path] = field(default=lambda sound, folder: folder / sound.name)


def files(kind: str, pattern: str = "*") -> list[Path]:
    """Return the sound files of a kind."""
    return sorted(CORPUS.glob(f"{kind}/{pattern}"))


def _json(random: Random, content: bytes) -> bytes:
    return mutate_json(random, content.decode()).encode("utf-8", "surrogateescape")


def _bytes(random: Random, content: bytes) -> bytes:
    return mutate_bytes(random, content)


def _json_lines(random: Random, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    place = random.randrange(len(lines))
    lines[place] = mutate_json(random, lines[place])
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _json_or_text(random: Random, content: bytes) -> bytes:
    return _json(random, content) if content[:1] in b"[{" else mutate_bytes(random, content)


def _safetensors(random: Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if random.random() < 0.4:
        return mutate_bytes(random, content, within=8 + length)
    header = _json(random, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _template(random: Random, content: bytes) -> bytes:
    if random.random() < 0.7:
        return template(random).encode()
    text = mutate_bytes(random, content).decode("utf-8", "replace")
    return text.replace(str(random.randrange(10)), random.choice(("99999", "10**9", "0")), 1).encode()


def _read_safetensors(path: Path) -> None:
    source = SafetensorsSource(path.parent)
    assert all(math.prod(source.read(name).shape) == math.prod(shape) for name, shape in source.shapes.items())


def _place_safetensors(sound: Path, folder: Path) -> Path:
    return folder / SINGLE


def _place_index(sound: Path, folder: Path) -> Path:
    shutil.copy(files("safetensors")[0], folder)
    return folder / INDEX


def _read_config(path: Path) -> None:
    config = LlamaConfig.from_hf(checks.json_object(path))
    assert config.num_parameters > 0
    assert len(checkpoint_shapes(config)) > config.num_hidden_layers
    if config.head_dim < 10_000:
        assert np.isfinite(inverse_frequencies(config.rope, config.head_dim)).all()
        assert math.isfinite(config.rope.attention_scaling)


def _read_generation_config(path: Path) -> None:
    checks.token_ids("eos_token_id", checks.json_object(path).get("eos_token_id"))


def _read_gguf(path: Path) -> None:
    file = open_gguf(path)
    assert sum(file.raw(name).nbytes for name, info in file.tensors.items() if info.nbytes) < path.stat().st_size
    config = config_from_gguf(file)
    assert isinstance(GGUFSource(file, config, np.dtype(np.float32)).shapes, dict)
    _use_tokenizer(Tokenizer(tokenizer_from_gguf(file)))


def _place_tokenizer(sound: Path, folder: Path) -> Path:
    shutil.copytree(sound.parent, folder, dirs_exist_ok=True)
    return folder / sound.name


def _read_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer.from_folder(path.parent)
    if tokenizer is not None:
        _use_tokenizer(tokenizer)


def _use_tokenizer(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc a\n 42")
    tokenizer.decode(ids)
    tokenizer.decode(ids, skip_special_tokens=False)
    pieces = tokenizer.detokenizer()
    pieces.push(ids)
    pieces.finish()
    assert tokenizer.vocab_size >= 0
    if tokenizer.chat_template is not None:
        tokenizer.encode_chat(MESSAGES)


def _read_template(path: Path) -> None:
    values = {"messages": MESSAGES, "tools": None, "documents": None, "add_generation_prompt": True}
    ChatTemplate(path.read_text(encoding="utf-8"), "a model").render(
        {**values, "bos_token": "<s>", "eos_token": "</s>"}
    )


def _read_profile(path: Path) -> None:
    profile = load_profile(path)
    assert decode(encode(profile)) == profile
    assert profile.linear(4) >= 0


def _read_hardware(path: Path) -> None:
    catalogue = Catalogue.built_in().extended(path)
    assert all(shape.weights_bytes > 0 for shape in catalogue.models.values())


def _read_prompts(path: Path) -> None:
    read_tasks(argparse.Namespace(prompts=[], file=str(path), jsonl=True, chat=False), SamplingParams())


READERS = {
    "safetensors": Reader(
        corpus=files("safetensors"),
        mutate=_safetensors,
        read=_read_safetensors,
        errors=(CheckpointError,),
        place=_place_safetensors,
    ),
    "index": Reader(
        corpus=files("index"), mutate=_json, read=_read_safetensors, errors=(CheckpointError,), place=_place_index
    ),
    "gguf": Reader(corpus=files("gguf"), mutate=_bytes, read=_read_gguf, errors=(CheckpointError, ChatTemplateError)),
    "config": Reader(corpus=files("config"), mutate=_json, read=_read_config, errors=(ValueError,)),
    "generation_config": Reader(
        corpus=files("generation_config"), mutate=_json, read=_read_generation_config, errors=(ValueError,)
    ),
    "tokenizer": Reader(
        corpus=files("tokenizer", "*/*.json"),
        mutate=_json,
        read=_read_tokenizer,
        errors=(CheckpointError, ChatTemplateError),
        cases=150,
        place=_place_tokenizer,
    ),
    "tokenizer_model": Reader(
        corpus=files("tokenizer_model"), mutate=_bytes, read=_read_tokenizer, errors=(CheckpointError,), cases=100
    ),
    "chat_template": Reader(
        corpus=files("chat_template"), mutate=_template, read=_read_template, errors=(ChatTemplateError,), cases=400
    ),
    "profile": Reader(corpus=files("profile"), mutate=_json, read=_read_profile, errors=(ProfileError,)),
    "hardware": Reader(corpus=files("hardware"), mutate=_json, read=_read_hardware, errors=(ValueError,)),
    "trace": Reader(corpus=files("trace"), mutate=_json, read=load, errors=(TraceError,)),
    "recording": Reader(corpus=files("recording"), mutate=_json_or_text, read=read_trace, errors=(ValueError,)),
    "prompts": Reader(corpus=files("prompts"), mutate=_json_lines, read=_read_prompts, errors=(UserError,)),
}
