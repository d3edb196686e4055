"""Ctrl-C where Python by itself would lose it or break something."""

import gc
import importlib
import signal
import subprocess
import sys
import time
import weakref

import pytest

from apex_jax.cli import interrupts


def wait(seconds):
    """Do nothing, in Python code that an interrupt can end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def interrupted(work):
    """Run `work` and check that an interrupt comes after it and leaves the signals as they were."""

    def run():
        with interrupts.kept(lambda: None):
            work()
            wait(60)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_after_a_callback_of_the_garbage_collector():
    steps = []

    def callback(phase, info):
        if phase == "start" and not steps:
            steps.append("begin")
            signal.raise_signal(signal.SIGINT)
            wait(5 * interrupts.RETRY_SECONDS)
            steps.append("end")

    gc.callbacks.append(callback)
    try:
        interrupted(gc.collect)
    finally:
        gc.callbacks.remove(callback)
    assert steps == ["begin", "end"]


def test_after_a_finalizer():
    ended = []

    class Interrupting:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            wait(5 * interrupts.RETRY_SECONDS)
            ended.append(True)

    interrupted(Interrupting)
    assert ended


def test_after_the_callback_of_a_weak_reference():
    class Thing:
        pass

    class Interrupting(set):
        def discard(self, item):
            signal.raise_signal(signal.SIGINT)
            wait(5 * interrupts.RETRY_SECONDS)
            super().discard(item)

    things = weakref.WeakSet()
    things.data = Interrupting()

    def work():
        thing = Thing()
        things.add(thing)

    interrupted(work)
    assert not things.data


def test_after_an_import(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(0.05)\nended = True\n"
    (tmp_path / "interrupted_module.py").write_text(code, encoding="utf-8")
    interrupted(lambda: importlib.import_module("interrupted_module"))
    assert importlib.import_module("interrupted_module").ended


PROGRAM = """
import hashlib, sys, time
from threading import Event
from apex_jax.cli import interrupts

raised = Event()
with interrupts.ended_if_ignored(raised, status=130, message="ended\\n"):
    try:
        with interrupts.kept(raised.set):
            print("computed", end="")
            print("ready", file=sys.stderr, flush=True)
            {work}
    except KeyboardInterrupt:
        time.sleep(1.5 * interrupts.PATIENCE_SECONDS)
        print(" and cleaned up", end="")
"""


@pytest.mark.parametrize(
    ("work", "status", "out", "err"),
    [
        # Half a minute in C, which no signal ends, as in a compilation.
        ("hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)", 130, "computed", "ended\n"),
        # What the exception sets off may take its time.
        ("time.sleep(60)", 0, "computed and cleaned up", ""),
    ],
)
def test_a_process_ends_within_two_seconds_where_python_cannot_raise(work, status, out, err):
    arguments = [sys.executable, "-c", PROGRAM.format(work=work)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        said = process.communicate()
    assert said == (out, err)
    assert process.returncode == status
    assert time.monotonic() - start < 10


def test_elsewhere_it_comes_at_once():
    def interrupt():
        with interrupts.kept(lambda: None):
            signal.raise_signal(signal.SIGINT)
            pytest.fail("no interrupt came")

    with pytest.raises(KeyboardInterrupt):
        interrupt()
