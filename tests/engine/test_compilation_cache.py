"""Compiled programs on disk: kept by default, left to those who chose for themselves, done without where that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apex_jax.options import EngineOptions

PROGRAM = """
import json, logging, sys
import jax
from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.models import random_weights

logging.basicConfig(level=logging.INFO)
own, options = json.loads(sys.argv[1]), json.loads(sys.argv[2])
if own:
    jax.config.update("jax_compilation_cache_dir", own)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
config = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128, eos_token_ids=(11,),
)
llm = LLM.from_params(config, random_weights(config, 3, "float32"), device_kv_tokens=128, **options)
out = llm.generate([{"prompt_token_ids": [5, 6]}], SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
print(json.dumps([out[0].outputs[0].token_ids, jax.config.jax_compilation_cache_dir, len(hits)]))
"""


def start(tmp_path, own=None, **options):
    """Return the tokens, the folder in use, how many programs were found there, and what was logged."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(own), json.dumps(options)],
        env={**settings, "JAX_PLATFORMS": "cpu", "APEX_JAX_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return (*json.loads(done.stdout), done.stderr)


def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    tokens, folder, found, _ = start(tmp_path)
    assert folder.startswith(str(tmp_path / "cache" / "compiled"))
    assert found == 0
    again, _, found, _ = start(tmp_path)
    assert again == tokens
    assert found > 5


def test_who_chooses_keeps_what_he_chose(tmp_path):
    own, other = str(tmp_path / "own"), str(tmp_path / "other")
    assert start(tmp_path, own)[1] == own
    assert start(tmp_path, own, compilation_cache=other)[1] == own
    assert start(tmp_path, compilation_cache=other)[1] == other
    assert start(tmp_path, compilation_cache=None)[1] is None
    assert not (tmp_path / "cache" / "compiled").exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    tokens, folder, _, logged = start(tmp_path, compilation_cache=str(tmp_path / "file" / "below"))
    assert len(tokens) == 4
    assert folder is None
    assert "Compiled programs are not kept" in logged


def test_programs_that_were_cut_short_are_compiled_again(tmp_path):
    """What a process is killed over has no time of its last use; JAX would warn of it at every start."""
    tokens, folder, _, _ = start(tmp_path)
    entries = sorted(Path(folder).glob("*-cache"))
    for entry in entries[::2]:
        entry.write_bytes(entry.read_bytes()[:20])
        Path(str(entry).removesuffix("-cache") + "-atime").unlink()
    again, _, found, logged = start(tmp_path)
    assert again == tokens
    assert found == len(entries) // 2
    assert "compilation cache" not in logged
    assert all(entry.stat().st_size > 20 for entry in entries)


@pytest.mark.parametrize("value", [3, True, "", b"folder"])
def test_what_is_no_folder_is_refused(value):
    with pytest.raises(TypeError, match="compilation_cache must be a folder"):
        EngineOptions(compilation_cache=value)
