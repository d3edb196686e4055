"""The command as a process: start-up, Ctrl-C, closed pipes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import apex_jax

COMMAND = [sys.executable, "-c", "from apex_jax.cli import process; process()"]


def start(*arguments):
    # Without a buffer, so that a test can react to the first text.
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_help_and_mistakes_do_not_wait_for_jax():
    script = (
        "import sys; from apex_jax.cli import main\n"
        "for arguments in (['--help'], ['generate', '--help'], ['generate', '--nonsense'], ['--version']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "assert not {'jax', 'flax', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_version():
    out = subprocess.run([*COMMAND, "--version"], check=True, capture_output=True).stdout
    assert out.decode() == f"apex-jax {apex_jax.__version__}\n"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("when", ["at the start", "in the middle of text", "in JSON"])
def test_ctrl_c(stories, when):
    how = "--json" if when == "in JSON" else "--stream"
    arguments = ("generate", how, "--model", stories, "--max-tokens=none", "--ignore-eos", "Once", "Tom", "--n=8")
    with start(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if when == "in the middle of text":
            assert process.stdout.read(200), process.stderr.read()
        else:
            # The process is past its own start once it has mapped a library that comes later.
            wait_for_library(process, "jaxlib" if when == "at the start" else "tokenizers")
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read().decode()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.endswith("\napex-jax: interrupted\n")
    if when == "in JSON":
        assert out == b""


def wait_for_library(process, name):
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    while name not in maps.read_text():
        assert process.poll() is None


def test_a_reader_that_goes_away(stories):
    arguments = ("generate", "--stream", "--model", stories, "--max-tokens=400", "--ignore-eos", "Once upon a time")
    with start(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_that_has_not_every_character(stories, encoding):
    """Headings with a prompt's own text are shown as far as the encoding goes, and JSON says all in any."""
    prompts = ("Café 猫", "Tom")
    arguments = [*COMMAND, "generate", "--model", str(stories), "--max-tokens=3", "--temperature=0"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    shown = subprocess.run([*arguments, *prompts], check=True, capture_output=True, env=environment).stdout
    expected = prompts[0].encode(encoding, errors="backslashreplace")
    assert expected in shown
    told = subprocess.run([*arguments, "--json", *prompts], check=True, capture_output=True, env=environment).stdout
    requests = json.loads(told.decode(encoding))["requests"]
    assert [request["prompt"] for request in requests] == list(prompts)
