"""`apex-jax fit` as a user calls it."""

import json

import pytest

import apex_jax.fit.fit_report
from apex_jax.cli import main
from apex_jax.fit.fit_report import FitError, FitReport, lines, need_compiler
from apex_jax.fit.gpu_target import TARGETS
from apex_jax.fit.memory_chart import draw_fit

SMALL = ["--max-num-seqs", "1", "--max-num-batched-tokens", "64", "--max-model-len", "64", "--num-layers", "1"]


def program(name, shape, **values):
    known = {
        "temp_bytes": 10**6,
        "result_bytes": 0,
        "kernels": 40,
        "bytes_read": 11 * 10**9,
        "bytes_written": 10**9,
        "fewest_bytes_read": 10**10,
        "copies": [],
        "updated_in_place": True,
    }
    return {"name": name, "shape": shape, **known, **values}


def report(programs, **planned):
    sizes = {
        "dtype": "float16",
        "num_layers": 2,
        "weight_bytes": 13 * 10**9,
        "kv_bytes_per_token": 10**6,
        "device_kv_tokens": 1024,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "work_bytes": 10**8,
    }
    return FitReport(
        device=TARGETS["t4"],
        model="m",
        fraction=0.92,
        refused=None,
        planned={**sizes, **planned},
        programs=programs,
    )


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_fits(capsys, tmp_path):
    picture = tmp_path / "fit.png"
    assert main(["fit", "--device", "t4", "--model", "smollm2-135m", *SMALL, "--json", "-o", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    found = json.loads(capsys.readouterr().out.split("wrote")[0])
    assert found["fits"]
    assert found["device_kv_tokens"] == 64
    assert {p["name"] for p in found["programs"]} >= {"decode_step", "layers", "attend", "boundary", "sample"}
    for compiled in found["programs"]:
        assert compiled.keys() >= {"shape", "temp_bytes", "kernels", "bytes_read", "bytes_written", "copies"}
        assert compiled["kernels"] >= 1


@pytest.mark.usefixtures("compiler")
def test_a_model_that_does_not_fit_says_by_how_much(capsys):
    assert main(["fit", "--device", "t4", "--model", "llama-2-13b"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: the model's 13015864320 weights take 26031728640 bytes in float16; Tesla T4 has" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "v100", "--model", "llama-2-7b"], "unknown GPU 'v100'; known are t4"),
        (["--model", "llama-2-7b"], "fit needs --device"),
        (["--device", "t4"], "fit needs --model"),
        (["--device", "t4", "--model", "llama-2-7b", "--gpu-memory-fraction", "1.5"], "above 0 and at most 1"),
        (["--describe", "/nowhere/gpu.txtpb"], "no NVIDIA driver|No such file"),
    ],
)
def test_what_cannot_be_asked(words, message, capsys):
    import re

    assert main(["fit", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_the_compiler(monkeypatch, capsys):
    monkeypatch.setattr(apex_jax.fit.fit_report, "PLUGINS", ("jax_plugins.none_such",))
    assert main(["fit", "--device", "t4", "--model", "llama-2-7b"]) == 2
    assert "pip install 'apex-jax[cuda-compile]'" in capsys.readouterr().err


def test_a_plugin_of_another_version(monkeypatch):
    versions = {"jax-cuda12-plugin": "0.11.0", "jax": "0.10.2"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    monkeypatch.setattr(apex_jax.fit.fit_report, "find_spec", lambda name: name)
    with pytest.raises(FitError, match=r"jax-cuda12-plugin is 0.11.0 and jax is 0.10.2"):
        need_compiler()


def test_the_report_says_what_is_copied_and_what_a_step_takes():
    copying = program(
        "attend", "64 prompt tokens, 8 rows, 1024 cached", copies=[{"of": "cache.1", "nbytes": 4 * 10**6}]
    )
    steps = [program("decode_step", f"{rows} rows, 1024 cached") for rows in (1, 8)]
    text = "\n".join(lines(report([*steps, program("decode_step", "8 rows, 64 cached"), copying])))
    assert "fits: 1,024 tokens of KV" in text
    assert "attend: 1 of its shapes copy, at most 4.0 MB of cache.1" in text
    assert "every cache is updated in place" in text
    assert "8 rows, 64 cached" not in text
    # 12 GB at 320 GB/s
    assert "20.0   11.000  10.000    1.000         37.49" in text
    assert draw_fit(report(steps)).axes[1].get_legend() is not None


def test_a_program_that_takes_what_is_left_does_not_fit():
    found = report([program("attend", "8 rows, 64 cached", temp_bytes=3 * 10**9)])
    assert not found.fits
    assert "DOES NOT FIT" in "\n".join(lines(found))
    assert not found.as_json()["fits"]
