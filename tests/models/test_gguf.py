"""GGUF files: written with llama.cpp's own package, read as transformers reads them; damaged ones refused."""

import contextlib
import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_jax.models import CheckpointError, LlamaConfig, forward, load_model, weights_from_params
from apex_jax.models.loading.gguf_file import open_gguf
from apex_jax.models.loading.gguf_source import GGUFSource, config_from_gguf
from apex_jax.models.loading.hf_names import checkpoint_shapes
from apex_jax.models.loading.registry import REGISTERED, WheelModel
from apex_jax.models.rope import inverse_frequencies
from apex_jax.models.tokenization.gguf_tokenizer import tokenizer_from_gguf

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=float(np.float32(1e-5)),
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_ids=(2,),
)
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def draw(config: LlamaConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal(shape) / 8 for name, shape in checkpoint_shapes(config).items()}
    return {name: (values + ("norm" in name)).astype(np.float32) for name, values in drawn.items()}


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k, row by row: rows i and i + H/2 of a head become neighbours."""
    width = values.shape[0] // heads
    pairs = [(head * width + i, head * width + width // 2 + i) for head in range(heads) for i in range(width // 2)]
    return values[np.array(pairs).ravel()]


def write(path: Path, config: LlamaConfig = CONFIG, kind: str = "F32", metadata=(), tensors=None, architecture="llama"):
    """Write a model; return the tensors, by Hugging Face name, as the stored type rounds them."""
    tensors = draw(config) if tensors is None else tensors
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, value, form in metadata:
        writer.add_key_value(key, value, form)
    add_vocabulary(writer, config.vocab_size)
    stored = {}
    for name, values in tensors.items():
        rounded = values
        quantised = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        if quantised != gguf.GGMLQuantizationType.F32:
            raw = gguf.quants.quantize(values, quantised)
            rounded = gguf.quants.dequantize(raw, quantised)
        stored[name] = np.asarray(rounded, np.float32)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            values = permuted(values, count) if f".{part}." in name else values
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(chr(0x61 + index % 26) * (1 + index // 26) for index in range(size - 3))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types([2, 3, 3, *[1] * (size - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{suffix}"
    return f"{NAMES.get(stem, stem)}.{suffix}"


def assert_equal_weights(found, tensors, config: LlamaConfig, dtype: str) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, weights_from_params(config, tensors, dtype=dtype))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_stored_type(tmp_path, kind):
    tensors = write(tmp_path / "toy.gguf", kind=kind)
    loaded = load_model(tmp_path / "toy.gguf")
    assert loaded.config == CONFIG
    assert_equal_weights(loaded.weights, tensors, CONFIG, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(tmp_path, dtype):
    tensors = write(tmp_path / "toy.gguf", kind="Q8_0")
    assert_equal_weights(load_model(tmp_path / "toy.gguf", dtype=dtype).weights, tensors, CONFIG, dtype)


VARIANTS = [
    {"head_dim": 8, "attention_bias": True},
    {"mlp_bias": True},
    {"tie_word_embeddings": True, "num_key_value_heads": 4},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_variants_are_told_from_the_tensors(tmp_path, changes):
    config = CONFIG.replace(**changes)
    tensors = write(tmp_path / "toy.gguf", config)
    loaded = load_model(tmp_path)
    assert loaded.config == config
    assert_equal_weights(loaded.weights, tensors, config, "float32")


def test_logits_equal_transformers_on_the_same_file(tmp_path):
    """Through transformers' function beneath `from_pretrained`, which itself asks for the accelerate package."""
    torch = pytest.importorskip("torch", reason="transformers reads GGUF with torch")
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = tmp_path / "toy.gguf"
    write(path, kind="Q8_0")
    theirs = LlamaForCausalLM(TheirConfig(**load_gguf_checkpoint(str(path))["config"])).eval()
    theirs.load_state_dict(load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)["tensors"])
    loaded = load_model(path)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 50))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    found = forward(loaded.config, loaded.weights, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-4)


def test_header_equals_the_package_own_reader(tmp_path):
    write(tmp_path / "toy.gguf", kind="Q4_0", metadata=[("extra.flag", True, gguf.GGUFValueType.BOOL)])
    ours, theirs = open_gguf(tmp_path / "toy.gguf"), gguf.GGUFReader(tmp_path / "toy.gguf")
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.type == tensor.tensor_type
        assert info.shape == tuple(tensor.shape.tolist())[::-1]
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)


def test_llama3_scaling_is_stored_as_factors(tmp_path):
    """The converter stores, for each frequency, by how much llama3 scaling divides it."""
    from apex_jax.models import preset

    wanted = preset("llama-3.2-1b")
    plain = CONFIG.replace(head_dim=64, rope=type(wanted.rope)(theta=wanted.rope.theta))
    frequencies = inverse_frequencies(wanted.rope, 64)
    factors = inverse_frequencies(plain.rope, 64) / frequencies
    tensors = draw(plain) | {"rope_freqs.weight": factors.astype(np.float32)}
    theta = ("llama.rope.freq_base", wanted.rope.theta, gguf.GGUFValueType.FLOAT32)
    write(tmp_path / "toy.gguf", plain, tensors=tensors, metadata=[theta])
    config = load_model(tmp_path / "toy.gguf").config
    np.testing.assert_allclose(inverse_frequencies(config.rope, 64), frequencies, rtol=3e-7)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"scaling.type": "none"}, {"rope_type": "default"}),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling(tmp_path, metadata, expected):
    forms = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}
    entries = [(f"llama.rope.{key}", value, forms[type(value)]) for key, value in metadata.items()]
    write(tmp_path / "toy.gguf", metadata=entries)
    rope = load_model(tmp_path / "toy.gguf").config.rope
    assert {key: getattr(rope, key) for key in expected} == expected


def test_yarn_factor_multiplies(tmp_path):
    """llama.cpp: mscale = attn_factor * (1 + 0.1 ln factor)."""
    number = gguf.GGUFValueType.FLOAT32
    entries = [
        ("llama.rope.scaling.type", "yarn", gguf.GGUFValueType.STRING),
        ("llama.rope.scaling.factor", 4.0, number),
        ("llama.rope.scaling.original_context_length", 32, gguf.GGUFValueType.UINT32),
        ("llama.rope.scaling.attn_factor", 2.0, number),
    ]
    write(tmp_path / "toy.gguf", metadata=entries)
    rope = load_model(tmp_path / "toy.gguf").config.rope
    assert rope.attention_scaling == pytest.approx(2 * 1.13862943611)


def test_registered_name(tmp_path, monkeypatch):
    write(tmp_path / "toy.gguf")
    content = (tmp_path / "toy.gguf").read_bytes()
    wheel = WheelModel(
        requirement="toy==1", wheel="toy-1.whl", member="toy/toy.gguf", sha256=hashlib.sha256(content).hexdigest()
    )
    cache = tmp_path / "cache"
    cache.mkdir()
    with zipfile.ZipFile(cache / "toy-1.whl", "w") as archive:
        archive.writestr("toy/toy.gguf", content)
    monkeypatch.setitem(REGISTERED, "toy", wheel)
    monkeypatch.setenv("APEX_JAX_CACHE", str(cache))
    assert load_model("toy").config == CONFIG


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (("llama.expert_count", 8, gguf.GGUFValueType.UINT32), "llama.expert_count = 8"),
        (("llama.attention.clamp_kqv", 8.0, gguf.GGUFValueType.FLOAT32), "llama.attention.clamp_kqv = 8.0"),
        (("llama.rope.dimension_count", 8, gguf.GGUFValueType.UINT32), "llama.rope.dimension_count = 8"),
        (("llama.rope.scaling.type", "longrope", gguf.GGUFValueType.STRING), "'longrope' is not implemented"),
        (("llama.rope.freq_base", "1e4", gguf.GGUFValueType.STRING), "llama.rope.freq_base must be .*, got '1e4'"),
        (
            ("llama.rope.freq_base", float("nan"), gguf.GGUFValueType.FLOAT32),
            "llama.rope.freq_base must be .*, got nan",
        ),
    ],
)
def test_settings_not_implemented_are_named(tmp_path, entry, complaint):
    write(tmp_path / "toy.gguf", metadata=[entry])
    with pytest.raises(CheckpointError, match=complaint):
        load_model(tmp_path / "toy.gguf")


def test_other_architecture(tmp_path):
    write(tmp_path / "toy.gguf", architecture="gemma2")
    with pytest.raises(CheckpointError, match="architecture 'gemma2'; only 'llama'"):
        load_model(tmp_path / "toy.gguf")


def test_missing_extra_and_misshapen_are_named_together(tmp_path):
    tensors = draw(CONFIG)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = np.ones(32, np.float32)
    tensors["strange.weight"] = np.ones(4, np.float32)
    write(tmp_path / "toy.gguf", tensors=tensors)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "toy.gguf")
    message = str(caught.value)
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert "not part of this model: strange.weight" in message
    assert "model.norm.weight has shape [32], needs [64]" in message


def test_other_tokenizers_and_files(tmp_path):
    (tmp_path / "text.gguf").write_text("this is text, and long enough to hold a header")
    with pytest.raises(CheckpointError, match="does not begin with 'GGUF'"):
        load_model(tmp_path / "text.gguf")
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match=r"neither a folder nor a \.gguf file"):
        load_model(tmp_path / "config.json")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is no GGUF file: 0 bytes"):
        load_model(tmp_path / "empty.gguf")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "toy.gguf"
    write(path)
    return path.read_bytes()


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_anywhere(tmp_path, sound, cut):
    (tmp_path / "cut.gguf").write_bytes(sound[: int(cut * len(sound))])
    with pytest.raises(CheckpointError):
        open_gguf(tmp_path / "cut.gguf")


@given(place=st.integers(0, 3000), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_corrupt_headers_never_fail_otherwise(tmp_path, sound, place, value):
    """A flipped byte may go unseen, in a name or a score; what it must not do is fail in any way but by name."""
    (tmp_path / "flip.gguf").write_bytes(sound[:place] + bytes([value]) + sound[place + 1 :])
    with contextlib.suppress(CheckpointError):
        file = open_gguf(tmp_path / "flip.gguf")
        source = GGUFSource(file, config_from_gguf(file), np.dtype(np.float32))
        assert source.shapes
        tokenizer_from_gguf(file)
