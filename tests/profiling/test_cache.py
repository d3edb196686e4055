"""Profiles that are kept and found again, on a real engine over a tiny model."""

import json
import re
from dataclasses import replace

import pytest

from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.models import random_weights
from apex_jax.profiling.store import keep_profile, profile_path
from apex_jax.scheduler import Curve, ProfileError, load_profile

CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    eos_token_ids=(96,),
)
OPTIONS = {
    "device_kv_tokens": 256,
    "host_kv_bytes": 1 << 17,
    "max_num_seqs": 2,
    "max_host_seqs": 4,
    "page_size": 16,
    "max_num_batched_tokens": 32,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("APEX_JAX_CACHE", str(tmp_path))
    # Times do not matter here.
    monkeypatch.setattr("apex_jax.profiling.profiler.POINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def llm():
    return make()


def make(**options):
    return LLM.from_params(CONFIG, random_weights(CONFIG, 3, "float32"), **{**OPTIONS, **options})


@pytest.fixture
def kept(llm):
    """A profile that is kept for this engine without having been measured: only the key matters."""
    profile = llm.profile()
    assert profile_path(profile.key).is_file()
    return profile


def tokens(llm):
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    return [out.outputs[0].token_ids for out in llm.generate([[1, 2, 3], [4, 5]], params, use_tqdm=False)]


def test_measuring_leaves_the_engine_as_it_was(llm):
    before = tokens(llm)
    profile = llm.profile()
    assert tokens(llm) == before
    assert not profile.described
    assert profile.num_layers == 2
    assert profile.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert profile.padding.rows == (1, 2)
    # Pre-attention 32 * 8 * 16 of 32 * (8 + 4) * 16 + 3 * 32 * 48 weights.
    assert profile.pre_share == pytest.approx(4096 / 10752)
    assert profile.layer.covers(2)


def test_a_kept_profile_is_found_again(llm, kept):
    marked = replace(kept, stepwise_overhead=123.0)
    keep_profile(marked)
    assert llm.profile() == marked
    assert llm.profile(again=True).stepwise_overhead < 123.0
    assert llm.profile().stepwise_overhead < 123.0


def test_the_key_names_hardware_model_types_and_versions(kept):
    key = kept.key
    assert key.model == "L2 D32 N4 K2 H16 F48 V97"
    assert "float32" in key.dtypes
    assert "16" in key.dtypes
    assert "jax" in key.software
    assert "cores" in key.host


def test_other_batch_sizes_take_the_same_profile(llm, kept):
    other = make(max_host_seqs=3)
    assert other.profile().padding.host_rows == (3,)
    assert other.profile().layer == kept.layer


@pytest.mark.parametrize(
    ("options", "beyond"),
    [
        ({"max_host_seqs": 16}, r"16 rows of a cohort \(measured: 1 to 4\)"),
        ({"max_host_seqs": 16}, r"18 rows that sample \(measured: 1 to 6\)"),
        ({"host_kv_bytes": 1 << 18}, r"512 cached tokens of a cohort \(measured: 0 to 256\)"),
        ({"max_num_batched_tokens": 64}, r"66 rows of a pass \(measured: 1 to 34\)"),
    ],
)
def test_a_profile_that_covers_less_is_taken_with_a_warning(options, beyond, kept, caplog):
    other = make(**options)
    assert other.profile().layer == kept.layer
    message = caplog.records[-1].getMessage()
    assert "covers less than this engine can hold, and goes on as over its upper halves" in message
    assert re.search(beyond, message)
    assert "`apex-jax profile --again` with this engine's options" in message


def test_a_profile_that_covers_all_is_taken_silently(llm, kept, caplog):
    make()
    assert not caplog.records


def test_automatic_profiling_measures_what_is_not_covered(kept, capsys):
    make(max_host_seqs=16, auto_profile=True)
    assert "16 rows of a cohort (measured: 1 to 4)" in capsys.readouterr().err
    assert load_profile(profile_path(kept.key)).hop.covers(16)


def test_larger_batches_than_were_measured_are_refused(kept):
    keep_profile(replace(kept, layer=Curve(points=((1, 1e-3),))))
    with pytest.raises(
        ProfileError, match="covers batches of up to 1 rows; needed are 2; to measure anew: `apex-jax profile --again`"
    ):
        make().profile()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"described": True}, "is described by rates; a measured profile is needed; to measure anew: "),
        ({"num_layers": 3}, "is not what its key says: num_layers is 3, needed is 2; to measure anew: "),
        ({"page_size": 64}, "is not what its key says: page_size is 64, needed is 16; to measure anew: "),
        (
            {"kv_bytes_per_token": 8},
            "is not what its key says: kv_bytes_per_token is 8, needed is 512; to measure anew: ",
        ),
    ],
)
def test_what_is_not_this_engines_is_refused_and_measured_anew_if_automatic(change, match, kept, capsys):
    keep_profile(replace(kept, **change))
    with pytest.raises(ProfileError, match=match):
        make()
    make(auto_profile=True)
    assert re.search(match, capsys.readouterr().err)
    found = load_profile(profile_path(kept.key), kept.key)
    assert {name: getattr(found, name) for name in change} == {name: getattr(kept, name) for name in change}


def test_a_profile_that_cannot_be_kept_is_used(monkeypatch, tmp_path, caplog):
    """A file lies where the cache folder would be: what was measured is not lost."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APEX_JAX_CACHE", str(tmp_path / "file"))
    assert make().profile().layer.covers(2)
    assert "The profile is used and not kept, since it cannot be written" in caplog.text


def test_a_damaged_profile_is_refused(llm, kept):
    path = profile_path(kept.key)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(
        ProfileError, match=r"not whole JSON.*; to measure anew: `apex-jax profile --again` with this engine's options"
    ):
        llm.profile()
    values = json.loads(text)
    values["key"]["software"] = "apex-jax 0.0.1"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ProfileError, match=r"something else: software is 'apex-jax 0.0.1'"):
        llm.profile()


def test_not_while_requests_are_under_way(llm):
    stream = llm.stream([[1, 2, 3]], SamplingParams(max_tokens=8, ignore_eos=True))
    next(stream)
    with pytest.raises(RuntimeError, match="requests are under way"):
        llm.profile()
    stream.close()


def test_without_a_host_tier():
    with pytest.raises(ValueError, match="give host_kv_bytes"):
        make(host_kv_bytes=None, max_host_seqs=None).profile()


def test_automatic_profiling_replaces_what_cannot_be_used(kept, capsys):
    path = profile_path(kept.key)
    path.write_text("{", encoding="utf-8")
    make(auto_profile=True)
    assert "not whole JSON" in capsys.readouterr().err
    assert load_profile(path, kept.key).layer.covers(2)


def test_assumed_rates_are_called_so():
    """Nobody has measured this machine yet."""
    llm = make()
    tokens(llm)
    assert "rates are assumed and corrected; `apex-jax profile` measures them" in llm.explain()
