"""A revision of a hub model, and a tokenizer from another place."""

import shutil

import pytest

from apex_jax import LLM
from apex_jax.models import CheckpointError, ModelNotFoundError, open_model

TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@pytest.fixture
def bare(stories, tmp_path):
    """The model without its tokenizer."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for file in stories.iterdir():
        if file.name not in TOKENIZER:
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def hub(stories, monkeypatch):
    """What was asked of the hub, where all names lead to the model."""
    asked = []

    def download(name, *, revision, **_):
        asked.append((name, revision))
        return str(stories)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_a_revision(hub):
    open_model("owner/name", revision="v1.2")
    open_model("owner/name")
    assert hub == [("owner/name", "v1.2"), ("owner/name", None)]


@pytest.mark.parametrize("model", ["folder", "smollm2-135m-instruct", "llama-3.1-8b", "no such model"])
def test_a_revision_of_what_has_none(model, stories):
    name = stories if model == "folder" else model
    with pytest.raises(ValueError, match=r"revision='main' is one of a model on the hub \(owner/name\), got the model"):
        open_model(name, revision="main", load_format="dummy" if model == "llama-3.1-8b" else "auto")


def test_a_revision_that_is_not_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"'owner/name', revision 'v9', is no folder here and could not be"):
        open_model("owner/name", revision="v9")


@pytest.mark.parametrize("place", ["", "tokenizer.json", "tokenizer.model", "config.json"])
def test_a_tokenizer_in_a_folder(place, bare, stories):
    assert open_model(bare).tokenizer is None
    own, other = open_model(stories).tokenizer, open_model(bare, tokenizer=stories / place).tokenizer
    assert own is not None
    assert other is not None
    assert other.encode("Once upon a time") == own.encode("Once upon a time")


def test_a_tokenizer_from_the_hub(hub, bare):
    """The revision is the model's."""
    assert open_model(bare, tokenizer="owner/name").tokenizer is not None
    open_model("owner/model", tokenizer="owner/name", revision="v2")
    assert hub == [("owner/name", None), ("owner/model", "v2"), ("owner/name", None)]


def test_a_models_own_tokenizer_is_not_read_beside_another(bare, stories):
    (bare / "tokenizer.json").write_text("no JSON")
    with pytest.raises(CheckpointError):
        open_model(bare)
    assert open_model(bare, tokenizer=stories).tokenizer is not None


def test_a_place_without_a_tokenizer(bare, stories, tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer='.*bare': .*bare has no tokenizer"):
        open_model(stories, tokenizer=bare)
    with pytest.raises(ModelNotFoundError, match=r"no model '.*absent'"):
        open_model(stories, tokenizer=tmp_path / "absent")


def test_an_engine_and_the_command_take_both(bare, stories, command, hub):
    llm = LLM(bare, tokenizer=stories, device_kv_tokens=64)
    assert llm.generate("Once upon a time", use_tqdm=False)[0].outputs[0].text
    options = ("--tokenizer", stories, "--device-kv-tokens", "64", "--max-tokens", "4", "--temperature", "0")
    status, told, _ = command("generate", "Once upon a time", "--model", bare, *options)
    assert (status, bool(told.strip())) == (0, True)
    status, other, _ = command("generate", "Once upon a time", "--model", "owner/name", "--revision", "v3", *options)
    assert (status, other) == (0, told)
    assert hub == [("owner/name", "v3")]
    status, _, said = command("generate", "hi", "--model", bare, "--revision", "v3")
    assert status == 2
    assert "revision='v3' is one of a model on the hub" in said
