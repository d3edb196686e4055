"""`apex-jax demo`: it answers, and it fails when no answer comes."""

from dataclasses import replace

import pytest

from apex_jax.cli import demo
from apex_jax.models import ModelNotFoundError, registry


@pytest.fixture(scope="module")
def demo_model():
    try:
        return registry.fetch(demo.MODEL)
    except ModelNotFoundError as error:
        pytest.skip(f"the demo's model cannot be obtained here: {error}")


@pytest.mark.slow
def test_it_answers(command, demo_model):
    status, out, err = command("demo")
    assert (status, err) == (0, "")
    answer, _, summary = out.partition("\nSummary\n")
    assert "Paris" in answer.partition(f"> {demo.QUESTIONS[0]}\n")[2]
    assert [line.split("  ")[2].strip() for line in summary.splitlines()] == [
        "Answer",
        "First token",
        "Ran on",
        "Attention",
        "KV cache",
    ]


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
