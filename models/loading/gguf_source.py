"""A LLaMA model in a GGUF file: its configuration, and its tensors under Hugging Face names, dequantised."""

import math
import re
from typing import Any

import gguf
import numpy as np

from ...files.bounded_json import listed, shown
from ..config import LlamaConfig
from ..errors import CheckpointError
from ..rope import RopeConfig
from . import checks
from .gguf_file import GGUFFile
from .hf_names import Shape

ROPE_FACTORS = "rope_freqs.weight"

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_READ = {
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.finetuned",
}
_MUST_BE_ZERO = {"expert_count", "expert_used_count", "attention.sliding_window"}
_BLOCK_BYTES = 32 << 20
_MOST_FACTORS = 4096


def config_from_gguf(file: GGUFFile) -> LlamaConfig:
    """Read the configuration from the metadata and the names of the tensors.

    Raises:
        CheckpointError: another architecture, or a setting that is absent or not implemented, by name.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{file.path} holds architecture {shown(architecture)}; only 'llama' is implemented")
    settings = {key.removeprefix("llama."): value for key, value in file.metadata.items() if key.startswith("llama.")}
    try:
        _refuse_unknown(settings)
        return _config(file, settings)
    except KeyError as error:
        raise CheckpointError(f"{file.path} lacks the setting llama.{error.args[0]}") from error
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _config(file: GGUFFile, settings: dict[str, Any]) -> LlamaConfig:
    width, heads = _width_and_heads(settings)
    eos = file.metadata.get("tokenizer.ggml.eos_token_id")
    turn_end = file.metadata.get("tokenizer.ggml.eot_token_id")
    embedding = file.tensors.get("token_embd.weight")
    epsilon = settings["attention.layer_norm_rms_epsilon"]
    return LlamaConfig(
        vocab_size=settings.get("vocab_size") or (embedding.shape[0] if embedding and embedding.shape else 0),
        hidden_size=width,
        intermediate_size=settings["feed_forward_length"],
        num_hidden_layers=settings["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=settings.get("attention.head_count_kv", heads),
        head_dim=settings.get("attention.key_length") or width // heads,
        rms_norm_eps=float(np.float32(checks.number("llama.attention.layer_norm_rms_epsilon", epsilon))),
        rope=_rope(file, settings),
        max_position_embeddings=settings["context_length"],
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(token for token in (eos, turn_end) if token is not None)),
    )


def _width_and_heads(settings: dict[str, Any]) -> tuple[int, int]:
    names = ("embedding_length", "attention.head_count")
    width, heads = (checks.integer(f"llama.{name}", settings[name]) for name in names)
    return width, heads


def _rope(file: GGUFFile, settings: dict[str, Any]) -> RopeConfig:
    factors: tuple[float, ...] = ()
    if ROPE_FACTORS in file.tensors:
        info = file.tensors[ROPE_FACTORS]
        if info.type != gguf.GGMLQuantizationType.F32 or len(info.shape) != 1 or info.shape[0] > _MOST_FACTORS:
            raise ValueError(f"{ROPE_FACTORS} holds {info.type.name} {list(info.shape)}, needs F32 [H / 2]")
        values = file.raw(ROPE_FACTORS).view(np.float32)
        factors = () if np.all(values == 1) else tuple(values.tolist())
    theta = checks.number("llama.rope.freq_base", settings.get("rope.freq_base", 10_000.0))
    common = {"theta": theta, "frequency_factors": factors}
    kind = settings.get("rope.scaling.type", "linear" if "rope.scale_linear" in settings else "none")
    factor = settings.get("rope.scaling.factor", settings.get("rope.scale_linear", 1.0))
    factor = checks.number("llama.rope.scaling.factor", factor, zero=kind != "yarn")
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return RopeConfig(**common)
    if kind == "yarn":
        # Here the factor multiplies what yarn computes; in a config.json it takes its place.
        extra = checks.number("llama.rope.scaling.attn_factor", settings.get("rope.scaling.attn_factor", 1.0))
        return RopeConfig(
            rope_type="yarn",
            factor=factor,
            original_max_position_embeddings=settings["rope.scaling.original_context_length"],
            attention_factor=None if extra == 1 else extra * (1 + 0.1 * math.log(factor)),
            beta_fast=settings.get("rope.scaling.yarn_beta_fast"),
            beta_slow=settings.get("rope.scaling.yarn_beta_slow"),
            **common,
        )
    return RopeConfig(rope_type=kind, factor=factor, **common)


def _refuse_unknown(settings: dict[str, Any]) -> None:
    problems = [f"llama.{name} = {shown(settings[name])}" for name in sorted(set(settings) - _READ - _MUST_BE_ZERO)]
    problems += [f"llama.{name} = {shown(settings[name])}" for name in sorted(_MUST_BE_ZERO) if settings.get(name)]
    lengths = [settings.get(f"attention.{name}_length") for name in ("key", "value")]
    if lengths[0] != lengths[1]:
        problems.append(f"keys of width {shown(lengths[0])} and values of width {shown(lengths[1])}")
    rotated, width = settings.get("rope.dimension_count"), lengths[0]
    if rotated is not None and width is None:
        all_heads, heads = _width_and_heads(settings)
        width = all_heads // heads
    if rotated not in (None, width):
        problems.append(f"llama.rope.dimension_count = {shown(rotated)} of heads of width {shown(width)}")
    if problems:
        raise ValueError(f"not implemented: {listed(problems, '; ')}")


class GGUFSource:
    """Reads the tensors of a GGUF file by Hugging Face name, dequantised.

    Args:
        file: an opened header of architecture llama.
        config: what `config_from_gguf` made of it.
        dtype: of the arrays returned.
    """

    def __init__(self, file: GGUFFile, config: LlamaConfig, dtype: np.dtype):
        self._file, self._config, self._dtype = file, config, dtype
        self._names = {_hugging_face_name(name): name for name in file.tensors if name != ROPE_FACTORS}

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each tensor; one with a name unknown to LLaMA keeps that name."""
        return {theirs: self._file.tensors[name].shape for theirs, name in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, dequantised a few rows at a time so that no float32 copy of a large one exists."""
        info = self._file.tensors[self._names[name]]
        rows = self._file.raw(self._names[name]).reshape(info.shape[0] if len(info.shape) > 1 else 1, -1)
        values = np.empty((rows.shape[0], int(np.prod(info.shape)) // rows.shape[0]), self._dtype)
        step = max(1, _BLOCK_BYTES // (4 * values.shape[1]))
        for begin in range(0, rows.shape[0], step):
            values[begin : begin + step] = _dequantise(rows[begin : begin + step], info.type)
        values = values.reshape(info.shape)
        if ".q_proj." in name:
            return _unpermuted(values, self._config.num_attention_heads)
        if ".k_proj." in name:
            return _unpermuted(values, self._config.num_key_value_heads)
        return values


def _dequantise(rows: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    if kind == gguf.GGMLQuantizationType.F32:
        return rows.view(np.float32)
    if kind == gguf.GGMLQuantizationType.F16:
        return rows.view(np.float16)
    try:
        return gguf.quants.dequantize(rows, kind)
    except NotImplementedError as error:
        raise CheckpointError(f"GGUF tensors of type {kind.name} cannot be read: {error}") from error


def _unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Put each head's rows back in Hugging Face order: GGUF interleaves the two halves that RoPE turns together."""
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _hugging_face_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in _LAYER_NAMES:
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    return name
