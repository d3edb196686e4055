"""`apex-jax demo`: it answers, and it fails when no answer comes."""

import re
from dataclasses import replace

import pytest

from apex_jax.cli import demo
from apex_jax.models import ModelNotFoundError
from apex_jax.models.loading import registry


@pytest.fixture(scope="module")
def demo_model():
    try:
        return registry.fetch(demo.MODEL)
    except ModelNotFoundError as error:
        pytest.skip(f"the demo's model cannot be obtained here: {error}")


@pytest.mark.slow
def test_it_answers(command, demo_model, tmp_path):
    status, out, err = command("demo", "--timeline", tmp_path / "timeline.png")
    assert (status, err) == (0, "")
    answers, _, summary = out.partition("\nSummary\n")
    assert "Paris" in answers.partition(f"{demo.QUESTIONS[0]}\n")[2]
    assert all(f"--- {number} of 6" in answers for number in range(1, 7))
    titles = [line.split("  ")[2].strip() for line in summary.splitlines() if line.startswith("    ")]
    assert titles == ["Answers", "First token", "Ran on", "Strategy", "Attention", "KV cache"]
    on_device, on_host = map(int, re.search(r"(\d+) tokens on the device, (\d+) on the host", summary).groups())
    assert on_device > 0
    assert on_host > 0
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_it_fails_when_no_answer_comes(command, demo_model, monkeypatch):
    real = demo.serve

    def silent(*args, **options):
        served = real(*args, **options)
        outputs = [replace(o, outputs=[replace(c, text=" \n") for c in o.outputs]) for o in served.outputs]
        return replace(served, outputs=outputs)

    monkeypatch.setattr(demo, "serve", silent)
    monkeypatch.setattr(demo, "ANSWER_TOKENS", 2)
    status, out, err = command("demo")
    assert status == demo.NO_ANSWER_STATUS
    assert "FAILED: no answer came" in err
    assert "Summary" not in out


def test_it_fails_without_the_model(command, monkeypatch, tmp_path):
    monkeypatch.setenv("APEX_JAX_CACHE", str(tmp_path))
    (tmp_path / registry.REGISTERED[demo.MODEL].wheel).write_bytes(b"not a wheel")
    status, _, err = command("demo")
    assert status == 2
    assert "is damaged or not the expected wheel" in err
    assert err.count("\n") == 1
