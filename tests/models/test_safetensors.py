"""Folders in Hugging Face format: what transformers saves is read back; what is damaged is refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from apex_jax.models import CheckpointError, LlamaConfig, ModelNotFoundError, load_model, weights_from_params
from apex_jax.models.loading.hf_names import checkpoint_shapes

SETTINGS = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def draw(settings: dict, dtype: np.dtype | type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = checkpoint_shapes(LlamaConfig.from_hf(settings))
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, np.ndarray], settings: dict = SETTINGS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    placed = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(tensors)}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in tensors if placed[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def assert_equal_weights(found, tensors: dict[str, np.ndarray], dtype: str) -> None:
    expected = weights_from_params(LlamaConfig.from_hf(SETTINGS), tensors, dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_single_file_in_every_dtype(tmp_path, stored, dtype):
    tensors = draw(SETTINGS, np.float32)
    if stored is ml_dtypes.bfloat16:
        torch = pytest.importorskip("torch", reason="safetensors writes bfloat16 through torch")
        from safetensors.torch import save_file as save_torch

        write(tmp_path, {})
        rounded = {name: torch.from_numpy(values).bfloat16() for name, values in tensors.items()}
        save_torch(rounded, tmp_path / "model.safetensors")
        tensors = {name: values.astype(stored) for name, values in tensors.items()}
    else:
        tensors = {name: values.astype(stored) for name, values in tensors.items()}
        write(tmp_path, tensors)
    assert_equal_weights(load_model(tmp_path, dtype=dtype).weights, tensors, dtype)


def test_shards(tmp_path):
    tensors = draw(SETTINGS)
    assert_equal_weights(load_model(write_sharded(tmp_path, tensors)).weights, tensors, "float32")


def test_what_transformers_saves(tmp_path):
    torch = pytest.importorskip("torch", reason="transformers saves models with torch")
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(TheirConfig(**SETTINGS)).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path)
    tensors = {name: values.float().numpy().astype(ml_dtypes.bfloat16) for name, values in model.state_dict().items()}
    assert_equal_weights(loaded.weights, tensors, "bfloat16")
    assert str(loaded.weights.dtype) == "bfloat16"
    assert loaded.tokenizer is None


def test_weights_do_not_alias_the_file(tmp_path):
    folder = write(tmp_path, draw(SETTINGS))
    weights = load_model(folder).weights
    before = np.array(weights.embed["table"])
    content = (folder / "model.safetensors").read_bytes()
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-len(content) // 2, 2)
        file.write(bytes(len(content) // 2))
    np.testing.assert_array_equal(before, weights.embed["table"])


def test_stored_copy_of_a_tied_head(tmp_path):
    settings = SETTINGS | {"tie_word_embeddings": True}
    tensors = draw(settings)
    same = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert load_model(write(tmp_path / "same", same, settings)).weights.head is None
    other = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_model(write(tmp_path / "other", other, settings))


def test_old_rotary_buffers_are_passed_over(tmp_path):
    tensors = draw(SETTINGS)
    old = tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    assert_equal_weights(load_model(write(tmp_path, old)).weights, tensors, "float32")


def test_missing_extra_and_misshapen_are_named_together(tmp_path):
    tensors = draw(SETTINGS)
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((32, 32), np.float32)
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.zeros(8, np.float32)
    with pytest.raises(CheckpointError) as caught:
        load_model(write(tmp_path, tensors))
    message = str(caught.value)
    assert "missing: model.norm.weight" in message
    assert "not part of this model: model.layers.0.self_attn.q_norm.weight" in message
    assert "model.layers.1.mlp.down_proj.weight has shape [32, 32], needs [32, 48]" in message


def test_dummy_needs_only_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    loaded = load_model(tmp_path, load_format="dummy", num_layers=3, dtype="float16", seed=5)
    assert len(loaded.weights.layers) == loaded.config.num_hidden_layers == 3
    assert str(loaded.weights.dtype) == "float16"
    preset = load_model("llama-3.2-1b", load_format="dummy", num_layers=1, dtype="bfloat16")
    assert preset.config.hidden_size == 2048
    assert preset.tokenizer is None


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_file(tmp_path, keep):
    file = write(tmp_path, draw(SETTINGS)) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"{not json", "damaged header"),
        (b"[]", "damaged header: no JSON object"),
        (b'{"a": {"dtype": "F32", "shape": [2]}}', "damaged header at tensor a"),
        (b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}', "damaged header at tensor a"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', r"tensor a \[2\] F32 in 4 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", 8]}}', "damaged header at tensor a"),
        (b'{"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}', "dtype F8_E4M3; readable: F64, F32"),
        (b'{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}', r"tensor a has dtype \['F32'\]; readable"),
        (b'{"a": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}', "damaged header at tensor a"),
        (b'{"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}', "damaged header at tensor a"),
        (b'{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}', "damaged header at tensor a"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', r"tensor a \[2\] F32 in -8 bytes"),
        (
            b'{"a": {"dtype": "F32", "shape": [' + b"9," * 40 + b'1], "data_offsets": [0, 8]}}',
            "damaged header at tensor",
        ),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 400 + b'], "data_offsets": [0, 8]}}', "number of 400 digits is"),
        (b"[" * 100_000, "damaged header: it nests deeper than 64 levels"),
        (b'{"a": 1, "a": 2}', "damaged header: a is there twice"),
        (b'{"a\xff": 1}', "damaged header: 'utf-8' codec"),
        (b'{"a\\ud800": 1}', "damaged header: half a character"),
        (b'{"' + b"a" * 600 + b'": 1}', "damaged header: a tensor's name of 600 characters"),
        (b"{}", "the header and the end of the file leave a gap of 8 bytes"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "tensor a and the end of the file leave a gap",
        ),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "the header and tensor a leave a gap of 4"),
        (
            b'{"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
            b'"a": {"dtype": "F16", "shape": [2], "data_offsets": [4, 8]}}',
            "tensor b and tensor a overlap by 4 bytes",
        ),
    ],
)
def test_corrupt_header(tmp_path, header, complaint):
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=complaint):
        load_model(tmp_path)


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"lacks files .*: gone\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match="no 'weight_map'"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS | {"hidden_act": "gelu"}))
    with pytest.raises(CheckpointError, match="hidden_act = 'gelu'"):
        load_model(tmp_path)


def test_damaged_tokenizer(tmp_path):
    write(tmp_path, draw(SETTINGS))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_model(tmp_path)


def test_names_that_nothing_answers_to(tmp_path, monkeypatch):
    with pytest.raises(ModelNotFoundError, match=r"no model .*names known: smollm2-135m-instruct"):
        load_model(tmp_path / "absent")
    with pytest.raises(ModelNotFoundError, match="no model 'llama-4'"):
        load_model("llama-4")
    with pytest.raises(ModelNotFoundError, match=r"'llama-3.1-8b' is a preset of sizes without weights"):
        load_model("llama-3.1-8b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"'nobody/nothing' .* could not be fetched"):
        load_model("nobody/nothing")


def test_hub_name(tmp_path, monkeypatch):
    """What the hub's own download function leaves is a folder like any other."""
    tensors = draw(SETTINGS)
    write(tmp_path, tensors)
    asked = []

    def download(name, **options):
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert_equal_weights(load_model("owner/some-name_1.0").weights, tensors, "float32")
    assert asked == ["owner/some-name_1.0"]


def test_a_snapshot_that_another_tool_has_kept(tmp_path, monkeypatch):
    """Without a network, and with nothing but what is needed."""
    commit = "a" * 40
    kept = tmp_path / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    tensors = draw(SETTINGS)
    (kept / "snapshots" / commit).mkdir(parents=True)
    write(kept / "snapshots" / commit, tensors)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_equal_weights(load_model("owner/name").weights, tensors, "float32")

    def incomplete(name, **options):
        assert not {"*.json", "*.safetensors"} & set(options["allow_patterns"])
        raise OSError("1 file(s) are missing (trainer_state.json)")

    monkeypatch.setattr("huggingface_hub.snapshot_download", incomplete)
    assert_equal_weights(load_model("owner/name").weights, tensors, "float32")
    (kept / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"1 file\(s\) are missing"):
        load_model("owner/name")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16; got 'int8'"),
        ({"load_format": "npz"}, "load_format must be one of auto, dummy; got 'npz'"),
        ({"num_layers": 2}, "num_layers needs load_format='dummy'"),
    ],
)
def test_arguments(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_model("anything", **arguments)


MEASURE = """
import sys
from pathlib import Path
import jax
from apex_jax.models import load_model

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

small, large = sys.argv[1:]
load_model(small)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
weights = load_model(large).weights
print(status("VmHWM") - before, sum(leaf.nbytes for leaf in jax.tree.leaves(weights)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak memory counter")
def test_loading_holds_one_copy_of_the_model(tmp_path):
    """Peak resident memory, mapped file pages included, stays well below a second copy of the model.

    A fused matrix, what it is made of and its sources account for three times its size; compiling and buffers that the
    runtime frees a moment later for up to another 120 MiB.
    """
    settings = SETTINGS | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    small = write_sharded(tmp_path / "small", draw(SETTINGS))
    shapes = checkpoint_shapes(LlamaConfig.from_hf(settings))
    large = write(tmp_path / "large", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, settings)
    outcome = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large)], capture_output=True, text=True, check=True
    )
    peak, model = (int(value) for value in outcome.stdout.split())
    gate_up = 2 * 4096 * 1024 * jnp.dtype("float32").itemsize
    beside = 3 * gate_up + (128 << 20)
    assert model < peak < model + beside
    assert beside < 0.5 * model
