"""The engine's programs, compiled for GPUs that are not there: nothing is run, their text is read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apex_jax.fit.fit_report import compiler_environment
from apex_jax.fit.gpu_target import TARGETS

SCRIPT = Path(__file__).with_name("compile_for.py")
CASES = {
    # GPU, model, device rows, host rows, prompt tokens of an iteration, context
    "t4-mha": ("t4", "llama-2-7b", 128, 0, 512, 2048),
    "t4-gqa": ("t4", "llama-3.1-8b", 8, 64, 128, 4096),
    "a10-gqa": ("a10", "llama-3.1-8b", 32, 64, 512, 4096),
    "h100-gqa-of-8": ("h100", "llama-3.1-70b", 64, 0, 1024, 8192),
}


@pytest.fixture(scope="module", params=CASES)
def compiled(request, compiler):
    case = CASES[request.param]
    environment = {**os.environ, **compiler_environment(TARGETS[case[0]])}
    command = [sys.executable, str(SCRIPT), *map(str, case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"case": request.param, **json.loads(done.stdout.splitlines()[-1])}


def of(compiled, *names):
    return [program for program in compiled["programs"] if program["name"] in names]


def test_every_kind_of_program_is_there(compiled):
    names = {program["name"] for program in compiled["programs"]}
    moving = {"gather", "scatter"} if CASES[compiled["case"]][3] else set()
    assert names >= {"decode_step", "embed", "boundary", "attend", "layers", "sample", *moving}


def test_caches_are_updated_in_place(compiled):
    assert [program["shape"] for program in compiled["programs"] if not program["updated_in_place"]] == []


def test_no_weight_is_copied_or_converted(compiled):
    copied = {copy["of"] for program in compiled["programs"] for copy in program["copies"]}
    assert {name for name in copied if not name.startswith("cache")} == set()


def test_decode_copies_no_kv(compiled):
    """Eight query heads of a key head are the exception: where it has Triton, XLA gathers their pages first."""
    if compiled["case"] == "h100-gqa-of-8":
        return
    for program in of(compiled, "decode_step", "attend", "layers"):
        assert program["copies"] == [] or "prompt" in program["shape"], program


def test_a_decode_step_reads_weights_and_kv_once(compiled):
    if compiled["case"] == "h100-gqa-of-8":
        return
    steps = of(compiled, "decode_step")
    assert len(steps) >= 3
    for step in steps:
        assert step["bytes_read"] <= 1.15 * step["fewest_bytes_read"], step
        assert step["bytes_written"] <= 0.1 * step["fewest_bytes_read"], step


def test_programs_stay_within_what_is_kept_for_them(compiled):
    for program in compiled["programs"]:
        assert program["temp_bytes"] + program["result_bytes"] <= compiled["work_bytes"], program
