"""Why plain JAX stands in is said once, and truly."""

import logging
from pathlib import Path

import pytest

from apex_jax.host_offload import decode_attention, machine_instructions, native_attention_available, native_library

from .host_problems import make


@pytest.fixture
def fresh(monkeypatch):
    """Nothing loaded yet."""
    for function in (native_library.load, native_library.open_library):
        function.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for function in (native_library.load, native_library.open_library):
        function.cache_clear()


def falls_back(caplog, cause):
    with caplog.at_level(logging.WARNING, native_library.__name__):
        assert not native_attention_available(64)
        assert machine_instructions() is None
    (record,) = caplog.records
    assert "without its native host attention" in record.getMessage()
    assert cause in record.getMessage()
    problem = make(lengths=[3], heads=2, kv_heads=2, width=64)
    assert decode_attention(*problem.arguments())[0].shape == (1, 2, 64)
    with pytest.raises(ValueError, match=r"implementation is 'native', but .* without its native") as refused:
        decode_attention(*problem.arguments(), implementation="native")
    assert cause in str(refused.value)


def test_nothing_was_built(fresh, caplog, tmp_path):
    fresh.setattr(native_library, "__file__", str(tmp_path / "native_library.py"))
    falls_back(caplog, "it could not be built")


def test_what_was_built_is_for_another_python(fresh, caplog, tmp_path):
    (tmp_path / "_native.cpython-37m-x86_64-linux-gnu.so").touch()
    fresh.setattr(native_library, "__file__", str(tmp_path / "native_library.py"))
    falls_back(caplog, "_native.cpython-37m-x86_64-linux-gnu.so was built for another Python")


def test_what_was_built_cannot_be_loaded(fresh, caplog, tmp_path):
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"no library")
    fresh.setattr(native_library, "_library_path", lambda: broken)
    falls_back(caplog, f"{broken} cannot be loaded")


def test_what_was_built_is_of_another_version(fresh, caplog):
    other = next(Path(native_library.ctypes.__file__).parent.parent.glob("lib-dynload/_json*.so"), None)
    if other is None:
        pytest.skip("this Python has no shared library at hand")
    fresh.setattr(native_library, "_library_path", lambda: other)
    falls_back(caplog, "ApexDecodeAttention")
