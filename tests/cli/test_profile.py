"""`apex-jax profile` on a tiny model."""

import json

import pytest

from apex_jax.cli import main
from apex_jax.scheduler.cost_model.profile_io import decode

ARGUMENTS = (
    *("profile", "--model", "smollm2-135m", "--load-format", "dummy", "--num-layers", "1", "--device-kv-tokens", "256"),
    *("--host-kv-bytes", "8M", "--max-num-seqs", "1", "--max-host-seqs", "1", "--max-num-batched-tokens", "64"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("APEX_JAX_CACHE", str(tmp_path))
    # Times do not matter here.
    monkeypatch.setattr("apex_jax.profiling.profiler.POINT_SECONDS", 0.0)


@pytest.mark.slow
def test_measures_shows_and_draws(tmp_path, capsys):
    assert main([*ARGUMENTS, "--json"]) == 0
    profile = decode(capsys.readouterr().out)
    assert profile.num_layers == 1
    assert main([*ARGUMENTS, "--plot", str(tmp_path / "p.png")]) == 0
    shown = capsys.readouterr().out
    assert "L1 D576 N9 K3 H64 F1536 V49152" in shown
    assert f"{1e3 * profile.head(1):.3f}" in shown
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_a_damaged_profile_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("apex_jax.profiling.store.profile_path", lambda key: tmp_path / "p.json")
    (tmp_path / "p.json").write_text(json.dumps({"format": "other"}), encoding="utf-8")
    assert main(list(ARGUMENTS)) == 2
    assert "format is 'other'" in capsys.readouterr().err
    assert main([*ARGUMENTS, "--again"]) == 0
    assert main(list(ARGUMENTS)) == 0
