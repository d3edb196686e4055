"""Folders in Hugging Face format whose files say what no sound one says: refused by name; nothing outside is read."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from apex_jax.models import CheckpointError, load_model

from .test_safetensors import SETTINGS, assert_equal_weights, draw, write, write_sharded


def test_a_header_length_off_by_one(tmp_path):
    """Such a header is still JSON, for it ends in spaces; every tensor would begin a byte early."""
    file = write(tmp_path, draw(SETTINGS)) / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert content[8 + length - 1 : 8 + length] == b" "
    file.write_bytes((length - 1).to_bytes(8, "little") + content[8:])
    with pytest.raises(CheckpointError, match=r"and the end of the file leave a gap of 1 bytes"):
        load_model(tmp_path)


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((20 << 30).to_bytes(8, "little"))
        file.truncate(21 << 30)
    with pytest.raises(CheckpointError, match=r"a header of 21,474,836,480 bytes; at most 2,097,152 are read"):
        load_model(tmp_path)


def test_tensors_of_no_numbers(tmp_path):
    tensors = draw(SETTINGS)
    extra = tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros((0, 3), np.float32)}
    assert_equal_weights(load_model(write(tmp_path, extra)).weights, tensors, "float32")


def indexed(folder: Path, name: str) -> Path:
    """A folder whose index says that all tensors lie in one file of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    placed = dict.fromkeys(draw(SETTINGS), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


@pytest.mark.parametrize("form", ["../other/{0}", "{1}/other/{0}", "link.safetensors", "inner/../{0}", "loop", "a\0b"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, form):
    save_file(draw(SETTINGS), write(tmp_path / "other", {}) / "weights.safetensors")
    folder = indexed(tmp_path / "model", form.format("weights.safetensors", tmp_path))
    (folder / "inner").mkdir()
    (folder / "link.safetensors").symlink_to(tmp_path / "other" / "weights.safetensors")
    (folder / "loop").symlink_to(folder / "loop")
    save_file(draw(SETTINGS), folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"names .*(lies outside of the folder|no file)|lacks files .*loop"):
        load_model(folder)


def test_files_in_folders_of_the_folder_and_links_within_it(tmp_path):
    tensors = draw(SETTINGS)
    folder = indexed(tmp_path / "model", "link.safetensors")
    (folder / "inner").mkdir()
    save_file(tensors, folder / "inner" / "weights.safetensors")
    (folder / "link.safetensors").symlink_to(Path("inner") / "weights.safetensors")
    assert_equal_weights(load_model(folder).weights, tensors, "float32")
    assert_equal_weights(load_model(indexed(folder, "inner/weights.safetensors")).weights, tensors, "float32")


@pytest.mark.parametrize("place", ["blobs/0123", "../models--other--name/blobs/0123", "snapshots/other/0123"])
def test_a_snapshot_of_the_hub_cache_links_to_its_own_blobs(tmp_path, place):
    tensors, cache = draw(SETTINGS), tmp_path / "models--owner--name"
    folder = indexed(cache / "snapshots" / "main", "weights.safetensors")
    (cache / place).parent.mkdir(parents=True)
    save_file(tensors, cache / place)
    (folder / "weights.safetensors").symlink_to(Path("../..") / place)
    if place.startswith("blobs"):
        assert_equal_weights(load_model(folder).weights, tensors, "float32")
        (tmp_path / "shortcut").symlink_to(folder)
        assert_equal_weights(load_model(tmp_path / "shortcut").weights, tensors, "float32")
    else:
        with pytest.raises(CheckpointError, match=r"names 'weights\.safetensors', which lies outside of the folder"):
            load_model(folder)


def test_a_tensor_in_two_files(tmp_path):
    folder = write_sharded(tmp_path, draw(SETTINGS))
    (folder / "model-1.safetensors").write_bytes((folder / "model-0.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors holds tensor .*, and model-0\.safetensors does"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("config.json", "[" * 100_000, "is not valid JSON: it nests deeper than 64 levels"),
        ("config.json", '{"a":' * 90 + "1" + "}" * 90, "is not valid JSON: it nests deeper than 64 levels"),
        ("config.json", '{"vocab_size": ' + "9" * 5000 + "}", "a number of 5000 digits is too large"),
        ("config.json", " " * (5 << 20) + "{}", "more than 2,097,152 bytes"),
        ("config.json", '{"model_type": "\\udc00"}', "half a character"),
        ("config.json", "\udcff", "is not valid JSON: 'utf-8' codec"),
        ("generation_config.json", "[" * 100_000, "generation_config.json is not valid JSON: it nests deeper"),
        (
            "generation_config.json",
            '{"eos_token_id": 1e3}',
            "eos_token_id must be an integer of at least 0, got 1000.0",
        ),
        ("generation_config.json", '{"eos_token_id": [[2]]}', r"every id of generation_config.json: eos_token_id must"),
        ("model.safetensors.index.json", "{" * 100_000, "index.json is not valid JSON"),
        ("model.safetensors.index.json", '{"weight_map": {"a": ["b"]}}', "no 'weight_map'"),
    ],
)
def test_json_beyond_its_limits(tmp_path, file, text, complaint):
    write(tmp_path, draw(SETTINGS))
    (tmp_path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=complaint):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"vocab_size": 10**12}, "vocab_size must be at most 2,147,483,647, got 1000000000000"),
        ({"num_hidden_layers": 5_000_000}, "num_hidden_layers must be at most 10,000, got 5000000"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer, got '64'"),
        ({"rms_norm_eps": 1e300}, r"rms_norm_eps must lie between 1.18e-38 and 3.4e\+38, got 1e\+300"),
        ({"rope_theta": 10**300}, "rope_theta must lie between .*, got a whole number of 997 bits"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, r"RoPE type \['linear'\] is not implemented"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id must be an integer of at least 0, got {'a': 1}"),
        ({"bos_token_id": 10**40}, "bos_token_id must be at most 2,147,483,647"),
        ({"model_type": "x" * 10_000}, r"model_type = 'x{199}\.\.\., only 'llama' is implemented"),
        ({f"name{i}": 1 for i in range(1000)}, "name124 = 1 is unknown; and 970 more"),
    ],
)
def test_values_beyond_their_limits(tmp_path, entry, complaint):
    write(tmp_path, draw(SETTINGS))
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS | entry))
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_model(tmp_path)
    assert len(str(caught.value)) < 4000
