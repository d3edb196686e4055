"""`apex-jax info` against other sources of the same facts."""

import json
import os

import jax

import apex_jax
from apex_jax.host_offload import machine_instructions, native_library
from apex_jax.models import PRESETS


def test_facts(command, monkeypatch, tmp_path):
    monkeypatch.setenv("APEX_JAX_CACHE", str(tmp_path))
    status, out, _ = command("info", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["versions"]["apex-jax"] == apex_jax.__version__
    assert len(facts["devices"]) == jax.device_count()
    assert [device["default"] for device in facts["devices"]].count(True) == 1
    assert facts["host"]["cores"] <= (os.cpu_count() or 1)
    assert 0 < facts["host"]["available_bytes"] <= facts["host"]["memory_bytes"]
    native = machine_instructions() is not None
    kernel = {
        "native": native,
        "instructions": machine_instructions(),
        "absent_because": native_library.absence() or None,
    }
    assert facts["kernel"] == kernel
    assert facts["models"]["cache"] == str(tmp_path)
    assert facts["models"]["registered"]["smollm2-135m-instruct"]["bytes"] is None
    assert facts["presets"].keys() == PRESETS.keys()


def test_text_shows_every_section(command):
    status, out, _ = command("info")
    assert status == 0
    sections = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert sections == ["Versions", "Devices", "Host", "Models", "Presets, for --load-format dummy"]
    assert f"jax {jax.__version__}" in out
    assert all(name in out for name in PRESETS)


def test_why_the_native_kernel_is_not_used(command, monkeypatch, tmp_path):
    monkeypatch.setattr(native_library, "LIBRARY", tmp_path / "_native.so")
    for function in (native_library.load, native_library.open_library):
        function.cache_clear()
    try:
        status, out, _ = command("info")
    finally:
        for function in (native_library.load, native_library.open_library):
            function.cache_clear()
    assert status == 0
    assert (
        "attention  plain JAX, since the native kernel cannot be used: it was installed without a C++17 compiler" in out
    )
