"""Ctrl-C inside a callback of the garbage collector, where Python by itself would print and forget it."""

import gc
import signal
import time

import pytest

from apex_jax.cli import interrupts


def wait():
    """Be interrupted, or fail after a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass
    pytest.fail("no interrupt came")


def test_it_comes_after_the_callback():
    steps = []

    def callback(phase, info):
        if phase == "start" and not steps:
            steps.append("begin")
            signal.raise_signal(signal.SIGINT)
            begun = time.monotonic()
            while time.monotonic() < begun + 5 * interrupts.RETRY_SECONDS:
                pass
            steps.append("end")

    def collect():
        with interrupts.kept():
            gc.collect()
            wait()

    before = signal.getsignal(signal.SIGINT)
    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt):
            collect()
    finally:
        gc.callbacks.remove(callback)
    assert steps == ["begin", "end"]
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_elsewhere_it_comes_at_once():
    def interrupt():
        with interrupts.kept():
            signal.raise_signal(signal.SIGINT)
            pytest.fail("no interrupt came")

    with pytest.raises(KeyboardInterrupt):
        interrupt()
