"""Why plain JAX stands in is said once, and truly."""

import logging
import shutil
import subprocess
from pathlib import Path

import jax
import jaxlib
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
    fresh.setattr(native_library, "LIBRARY", tmp_path / "_native.so")
    falls_back(caplog, "it was installed without a C++17 compiler, or with APEX_JAX_NATIVE=0")


def test_what_was_built_cannot_be_loaded(fresh, caplog, tmp_path):
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"no library")
    fresh.setattr(native_library, "LIBRARY", broken)
    falls_back(caplog, f"{broken} cannot be loaded")


def test_what_was_built_lacks_functions(fresh, caplog):
    other = next(Path(native_library.ctypes.__file__).parent.parent.glob("lib-dynload/_json*.so"), None)
    if other is None:
        pytest.skip("this Python has no shared library at hand")
    fresh.setattr(native_library, "LIBRARY", other)
    falls_back(caplog, "ApexDecodeAttention")


HANDLERS = (
    *("ApexDecodeAttention", "ApexAppendDecodeAttention", "ApexPackedDecodeAttention", "ApexReadStream"),
    *("ApexReadPages", "ApexReadPagesInto", "ApexWritePages"),
)


@pytest.fixture
def claiming(tmp_path):
    """(major, minor) -> a library that says it was built for this version, whose handlers end the process."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")

    def make_library(major, minor):
        source, library = tmp_path / "claims.c", tmp_path / "_native.so"
        functions = [f"void {name}(void) {{ __builtin_trap(); }}" for name in HANDLERS]
        functions += [f"int ApexFfiVersion(void) {{ return {major} << 16 | {minor}; }}"]
        source.write_text("\n".join([*functions, "int ApexMachineInstructions(void) { return 0; }\n"]))
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        return library

    return make_library


@pytest.mark.parametrize(("majors", "minors"), [(0, 1), (0, 40), (1, 0), (-1, 0)])
def test_what_was_built_is_for_another_interface(fresh, caplog, claiming, majors, minors):
    """Were one handler registered, the CPU backend would be lost: `falls_back` uses it."""
    major, minor = native_library.jaxlib_ffi_version()
    library = claiming(major + majors, minor + minors)
    fresh.setattr(native_library, "LIBRARY", library)
    falls_back(
        caplog,
        f"{library} was built for XLA FFI {major + majors}.{minor + minors}, and jaxlib {jaxlib.__version__} has "
        f"{major}.{minor}; install apex_jax again",
    )


@pytest.mark.parametrize("older", [0, 1])
def test_the_same_interface_and_older_minor_versions_are_taken(fresh, claiming, older):
    major, minor = native_library.jaxlib_ffi_version()
    fresh.setattr(native_library, "LIBRARY", claiming(major, minor - older))
    assert native_library.absence() == ""


@pytest.mark.parametrize("header", [None, "", "#define XLA_FFI_API_MAJOR 0\n"])
def test_jaxlib_does_not_say_its_version(fresh, caplog, claiming, tmp_path, header):
    folder = tmp_path / "xla" / "ffi" / "api"
    folder.mkdir(parents=True)
    if header is not None:
        (folder / "c_api.h").write_text(header)
    fresh.setattr(native_library, "LIBRARY", claiming(0, 0))
    fresh.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    falls_back(caplog, f"jaxlib {jaxlib.__version__} does not say which version of the XLA FFI it has")


def test_the_header_says_what_the_headers_of_a_build_say():
    assert native_library.jaxlib_ffi_version() >= (0, 3)
    if native_library.LIBRARY.is_file():
        built = divmod(native_library.open_library()[0].ApexFfiVersion(), 1 << 16)
        assert (0, 3) <= built <= native_library.jaxlib_ffi_version()
