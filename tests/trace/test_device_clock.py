"""The device's clock: spans of programs in order, with a thread of its own or without."""

import threading
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from apex_jax.tracing.device_clock import DeviceClock
from apex_jax.tracing.recorder import Recorder


@pytest.mark.parametrize("threads", [True, False])
def test_programs_are_recorded_in_order(threads, monkeypatch, caplog):
    if not threads:

        def start(thread):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
    recorder = Recorder()
    clock = DeviceClock(recorder)
    assert clock.last_end() is None
    for number in range(3):
        clock.note("layer", jnp.ones(4) + number, number + 1, layer=number)
    clock.note("head", jnp.ones(4), 4, ends_iteration={"iteration": 7})
    clock.finish()
    spans = recorder.trace().spans
    assert [(span.name, span.args.get("layer")) for span in spans if span.name == "layer"] == [
        ("layer", 0),
        ("layer", 1),
        ("layer", 2),
    ]
    (iteration,) = (span for span in spans if span.name == "iteration")
    assert iteration.args == {"iteration": 7}
    assert iteration.begin_ns == 1
    assert clock.last_end() == iteration.end_ns
    assert len(caplog.records) == (0 if threads else 1)


def test_the_last_end_is_not_known_while_a_program_runs():
    clock, ended = DeviceClock(Recorder()), threading.Event()
    clock.note("layer", jnp.ones(4), 1)
    clock.finish()
    assert clock.last_end() is not None
    clock.note("layer", SimpleNamespace(block_until_ready=lambda: ended.wait(60)), 2)
    assert clock.last_end() is None
    ended.set()
    clock.finish()
    assert clock.last_end() > 2
