"""Progress: a bar on a terminal, one line in a file, and counts of what is compiled."""

import io

import jax
import jax.numpy as jnp
import pytest

from apex_jax import LLM, SamplingParams
from apex_jax.cli.progress import Progress
from apex_jax.progress_bar import Bar, each_compilation


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_the_last_line_alone():
    out = io.StringIO()
    with Bar(total=300, desc="Requests", file=out, mininterval=0) as bar:
        for _ in range(300):
            bar.update()
        assert out.getvalue() == ""
    (line,) = out.getvalue().splitlines()[1:]
    assert line.startswith("Requests: 100%")
    assert "300/300" in line


def test_a_terminal_sees_every_step():
    out = Terminal()
    with Bar(total=3, desc="Requests", file=out, mininterval=0) as bar:
        for done in range(3):
            bar.update()
            assert f"{done + 1}/3" in out.getvalue()


def test_a_disabled_bar_writes_nothing():
    for out in (io.StringIO(), Terminal()):
        with Bar(total=1, file=out, disable=True) as bar:
            bar.update()
        assert out.getvalue() == ""


def test_a_terminal_sees_which_step_is_under_way():
    out = Terminal()
    with Progress(out).through(["measuring", "round 1 of 2", "round 2 of 2"], "turn") as advance:
        for done, step in enumerate(("measuring", "round 1 of 2", "round 2 of 2", "done")):
            last = out.getvalue().split("\r")[-1]
            assert step in last
            assert f"{done}/3" in last
            if done < 3:
                advance()


def test_nobody_is_told_of_steps_in_a_file():
    out = io.StringIO()
    with Progress(out).through(["one"], "turn") as advance:
        advance()
    assert out.getvalue() == ""


def test_compilations_are_counted_while_it_is_asked_for():
    seen = []
    with each_compilation(lambda: seen.append(1)):
        jax.jit(lambda x: x * 17)(jnp.arange(3)).block_until_ready()
    assert seen
    before = len(seen)
    jax.jit(lambda x: x * 19)(jnp.arange(3)).block_until_ready()
    assert len(seen) == before


@pytest.fixture(scope="module")
def llm():
    return LLM(
        "tinyllama-1.1b",
        load_format="dummy",
        num_layers=1,
        device_kv_tokens=64,
        max_num_seqs=1,
        max_num_batched_tokens=64,
    )


def test_warm_up_and_generate_show_progress_where_asked(llm, capsys):
    llm.warm_up(use_tqdm=True)
    assert "Compiling: " in capsys.readouterr().err
    llm.warm_up()
    params = SamplingParams(max_tokens=2)
    llm.generate([[1], [2]], params, use_tqdm=False)
    assert capsys.readouterr().err == ""
    llm.generate([[1], [2]], params)
    assert "2/2" in capsys.readouterr().err
