"""What does not fit is refused by its name and numbers before anything is allocated."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import apex_jax.engine.capacity
import apex_jax.llm
from apex_jax import LLM, EngineOptions
from apex_jax.engine.capacity import coarse, free_memory, plan_memory
from apex_jax.engine.workspace import Work
from apex_jax.host_offload import available_memory
from apex_jax.models import preset

GIB = 2**30
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4  # keys and values, 2 layers, 2 heads of 16 numbers of 4 bytes


def accelerator(limit, used=0):
    """Return a device that counts its memory."""
    return SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": limit, "bytes_in_use": used})


def work_of(config, dtype, *, longest):
    """What is kept for 64 requests and 512 prompt tokens on an accelerator; tests/fit holds it against programs."""
    work = Work(config=config, dtype=np.dtype(dtype), page_size=64, longest=longest, accelerator=True)
    return work.nbytes(requests=64, prompt_tokens=512)


@pytest.fixture
def nothing_is_allocated(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights or caches were made")

    for name in ("Executor", "placed_on"):
        monkeypatch.setattr(apex_jax.llm, name, refuse)


@pytest.mark.usefixtures("nothing_is_allocated")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_kv_tokens": 10**12}, r"device_kv_tokens=1000000000000 is a KV cache of \d+ bytes; .* bytes free"),
        ({"device_kv_bytes": 2**60}, rf"device_kv_bytes={2**60} is a KV cache of {2**60} bytes; .* \d+ tokens"),
        ({"max_num_seqs": 10**10}, r"max_num_seqs=10000000000 needs \d+ bytes for the work of one iteration"),
        (
            {"max_num_batched_tokens": 10**15, "max_num_seqs": 10**7, "device_kv_tokens": 256},
            r"max_num_batched_tokens=1000000000000000 needs \d+ bytes for the work of one iteration",
        ),
    ],
)
def test_what_no_machine_holds(options, message, config, weights):
    with pytest.raises(ValueError, match=message):
        LLM.from_params(config, weights, **options)


@pytest.mark.usefixtures("nothing_is_allocated")
def test_a_model_that_no_machine_holds(monkeypatch):
    monkeypatch.setattr(apex_jax.engine.capacity, "available_memory", lambda: 100 * GIB)
    with pytest.raises(ValueError, match=rf"weights take {70_553_706_496 * 4} bytes in float32; .* {100 * GIB} bytes"):
        LLM("llama-3.1-70b", load_format="dummy", dtype="float32", device=jax.devices("cpu")[0])


def test_a_budget_is_compared_with_what_is_free_beside_weights_and_work(config):
    """Pages of one KV budget fit exactly, or one token's bytes too few are free."""
    options = EngineOptions(device_kv_tokens=2**20)
    weights = config.num_parameters * 4
    work = work_of(config, "float32", longest=256)
    needed = weights + work + 2**20 * TOKEN_BYTES
    assert plan_memory(config, np.dtype("float32"), options, device=accelerator(needed)).device_pages == 2**14
    with pytest.raises(ValueError, match=rf"{2**20 * TOKEN_BYTES - 1} bytes free, which hold {2**20 - 64} tokens"):
        plan_memory(config, np.dtype("float32"), options, device=accelerator(needed + 9, used=10))


def test_default_sizes_take_a_share_of_what_is_free():
    config = preset("llama-3.1-8b")
    page = 64 * 128 * 1024  # 128 KiB a token in bfloat16
    work = work_of(config, "float16", longest=131_072)
    free = 40 * GIB - config.num_parameters * 2 - work

    def pages(**options):
        return plan_memory(
            config, np.dtype("float16"), EngineOptions(**options), device=accelerator(40 * GIB)
        ).device_pages

    assert pages() == coarse(int(free * 0.9) // page, 32)
    assert 0.97 < pages() / (free * 0.9 / page) <= 1
    assert 0.97 < pages(memory_fraction=0.25) / (free * 0.25 / page) <= 1
    assert pages(max_num_seqs=1, max_model_len=1000) == 16


def test_sizes_stay_where_free_memory_hardly_changes():
    """What differs by a few per cent from start to start mostly gives the same shapes, and little is given away."""
    assert [coarse(count, 4) for count in (0, 1, 3, 7, 8, 9, 15, 16, 19, 20, 31)] == [
        0,
        1,
        3,
        7,
        8,
        8,
        14,
        16,
        16,
        20,
        28,
    ]
    assert len({coarse(count, 4) for count in range(100_000, 200_000)}) == 5
    assert all(0.8 * count < coarse(count, 4) <= count for count in range(1, 3000))
    assert all(0.96 * count < coarse(count, 32) <= count for count in range(1, 3000))


def test_a_cpu_has_the_memory_of_its_host():
    device = jax.devices("cpu")[0]
    assert 0.5 < free_memory(device) / available_memory() < 2
    assert free_memory(accelerator(100, used=30)) == 70


def test_a_cpu_cache_takes_its_share_of_a_control_group(config, monkeypatch, tmp_path):
    """A container of 1 GiB on a machine with 24 GiB free, beside the weights and the work of an iteration."""
    for name, text in {
        "proc/meminfo": f"MemAvailable: {24 << 20} kB",
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": f"{GIB}",
        "sys/fs/cgroup/memory.current": "0",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(apex_jax.engine.capacity, "available_memory", lambda: available_memory(tmp_path))
    options = EngineOptions(max_num_seqs=2**12, max_num_batched_tokens=64)
    per_token = 4 * (2 * 32 + 2 * 64 + 3 * 48)
    beside = config.num_parameters * 4 + 2**12 * (5 * 97 + 2048 + per_token) + 64 * per_token
    cpu = jax.devices("cpu")[0]
    pages = plan_memory(config, np.dtype("float32"), options, device=cpu).device_pages
    assert pages == coarse(int((GIB - beside) / 8) // (64 * TOKEN_BYTES), 4)
    with pytest.raises(ValueError, match=rf"host_kv_bytes={GIB} is above the \d+ bytes of main memory that are free"):
        plan_memory(config, np.dtype("float32"), EngineOptions(host_kv_bytes=GIB, max_num_seqs=2), device=cpu)


@pytest.fixture
def group_of_one_gib():
    """A control group of 1 GiB inside of this process's own: the file that takes the ids of its processes."""
    group = limit = None
    for line in Path("/proc/self/cgroup").read_text().splitlines() if sys.platform == "linux" else []:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            group, limit = Path("/sys/fs/cgroup/memory", path.lstrip("/")), "memory.limit_in_bytes"
        elif controllers == "" and group is None:
            group, limit = Path("/sys/fs/cgroup", path.lstrip("/")), "memory.max"
    if group is None or limit is None:
        pytest.skip("this system has no control groups")
    group /= f"apex-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (group / limit).is_file():
            pytest.skip("control groups inside of this process's own have no memory limits")
        (group / limit).write_text(str(GIB))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def test_a_process_under_a_real_limit(group_of_one_gib):
    script = f"""
import os
with open({str(group_of_one_gib)!r}, "w") as group:
    group.write(str(os.getpid()))
import jax
from apex_jax.engine.capacity import Work, coarse, free_memory
from apex_jax.host_offload import available_memory
print(available_memory(), free_memory(jax.devices("cpu")[0]))
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert all(0 < int(free) < GIB for free in done.stdout.split())


@pytest.mark.parametrize("stats", [None, {}])
def test_an_accelerator_that_does_not_count_its_memory(stats):
    """Not to be taken for one with the host's memory."""
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    with pytest.raises(ValueError, match=r"does not say how much memory it has.*XLA_PYTHON_CLIENT_ALLOCATOR"):
        free_memory(device)


def test_a_context_above_the_limit_of_model_or_cache(config, weights):
    with pytest.raises(ValueError, match="max_model_len=257 is above the model's own limit of 256 tokens"):
        LLM.from_params(config, weights, max_model_len=257)
    message = "max_model_len=200 is above what the KV cache holds: device_kv_tokens=199 gives 192 tokens in pages of 64"
    with pytest.raises(ValueError, match=message):
        LLM.from_params(config, weights, max_model_len=200, device_kv_tokens=199)
    assert LLM.from_params(config, weights, max_model_len=192, device_kv_tokens=199).max_model_len == 192
    assert LLM.from_params(config, weights, device_kv_tokens=199).max_model_len == 192


def test_no_more_prompt_tokens_at_once_than_all_requests_have(config):
    options = EngineOptions(max_num_seqs=2, max_num_batched_tokens=10**9, device_kv_tokens=1024)
    assert plan_memory(config, np.dtype("float32"), options, device=accelerator(GIB)).max_prefill_pages == 2 * 256 // 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_fraction": "a"}, "memory_fraction must be above 0 and at most 1, got 'a'"),
        ({"memory_fraction": True}, "memory_fraction must be above 0 and at most 1, got True"),
        ({"page_size": 64.0}, "page_size must be one of 16, 32, 64, 128, got 64.0"),
        ({"page_size": "64"}, "page_size must be one of 16, 32, 64, 128, got '64'"),
        (
            {"device": "cpu"},
            r"device must be a jax.Device such as jax.devices\(\)\[0\].*; got 'cpu'; JAX's devices here",
        ),
        ({"seed": "x"}, "seed must be an integer of at least 0, got 'x'"),
    ],
)
def test_options_of_wrong_types(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EngineOptions(**options)


def test_numbers_of_numpy_are_numbers():
    options = EngineOptions(max_num_seqs=np.int64(3), memory_fraction=np.float32(0.5))
    assert options.max_num_seqs == 3
    assert type(options.max_num_seqs) is int


def test_configurations_of_another_kind(config, weights):
    with pytest.raises(TypeError, match=r"config must be a LlamaConfig, got dict; LlamaConfig\.from_hf reads"):
        LLM.from_params(dataclasses.asdict(config), weights)
