"""What an engine takes from the kind of device that it runs on."""

import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from apex_jax import SamplingParams
from apex_jax.engine.executor_factory import host_device
from apex_jax.execution.attention_backend import default_dtype
from apex_jax.tracing.device_clock import DeviceClock


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("gpu", "7.5", "float16"),  # T4
        ("gpu", "8.0", "bfloat16"),  # A100
        ("gpu", "8.9", "bfloat16"),  # RTX 40
        ("gpu", "10.0", "bfloat16"),  # B200: a number of two digits
        ("gpu", "gfx942", "bfloat16"),  # another maker's
        ("tpu", None, "bfloat16"),
        ("cpu", None, "float32"),
    ],
)
def test_the_number_type_that_a_device_is_quick_in(platform, capability, expected):
    fields = {} if capability is None else {"compute_capability": capability}
    assert default_dtype(SimpleNamespace(platform=platform, **fields)) == expected


def test_a_host_tier_without_the_cpu_backend(monkeypatch):
    """As with JAX_PLATFORMS=cuda."""

    def unknown(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", unknown)
    with pytest.raises(RuntimeError, match=r"CPU backend.*JAX_PLATFORMS=.*,cpu"):
        host_device(SimpleNamespace(platform="gpu"))


def test_since_when_it_is_idle(make, monkeypatch):
    """JAX knows the present alone; while a trace is recorded, the moment at which the last program had ended."""
    llm = make()
    device = llm.engine.executor.device
    monkeypatch.setattr(type(jnp.zeros(())), "is_ready", lambda array: False)
    assert device.idle_since() is None
    monkeypatch.undo()
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    llm.generate([5, 17, 40], params, use_tqdm=False)
    before = time.perf_counter_ns()
    assert before <= device.idle_since() <= time.perf_counter_ns()
    with llm.recording() as recorder:
        assert device.idle_since() > before
        llm.generate([5, 17, 40], params, use_tqdm=False)
        for thread in threading.enumerate():
            if thread.name == "apex-jax-device-clock":
                thread.join(60)
        ends = [span.end_ns for span in recorder.trace().spans if span.track == "device"]
        assert device.idle_since() == max(ends)
        # While one has not been seen to end, what ended before it says nothing.
        monkeypatch.setattr(DeviceClock, "last_end", lambda clock: None)
        before = time.perf_counter_ns()
        assert device.idle_since() >= before
