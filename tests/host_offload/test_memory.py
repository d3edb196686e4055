"""Available memory is the least of what the machine has and what its control groups leave."""

import sys

import pytest

from apex_jax.host_offload import HostKVConfig, allocate, available_memory, cache
from apex_jax.host_offload import memory as memory_module

GIB = 1 << 30


def system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemAvailable:   {8 << 20} kB\n"}
SECOND = {"proc/self/cgroup": "0::/user/job\n"}


def limit(folder, most, used, files=0):
    return {
        f"sys/fs/cgroup/{folder}memory.max": f"{most}\n",
        f"sys/fs/cgroup/{folder}memory.current": f"{used}\n",
        f"sys/fs/cgroup/{folder}memory.stat": f"anon {used - files}\ninactive_file {files}\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MACHINE, 8 * GIB),
        (MACHINE | SECOND, 8 * GIB),
        (MACHINE | SECOND | limit("user/job/", "max", GIB), 8 * GIB),
        (MACHINE | SECOND | limit("user/job/", 4 * GIB, GIB), 3 * GIB),
        (MACHINE | SECOND | limit("user/job/", 4 * GIB, 3 * GIB, files=GIB), 2 * GIB),
        (MACHINE | SECOND | limit("user/job/", 4 * GIB, GIB) | limit("user/", 5 * GIB, 4 * GIB), GIB),
        # A container sees its own group at the top, whatever the path says.
        (MACHINE | SECOND | limit("", 2 * GIB, GIB), GIB),
        (MACHINE | SECOND | limit("", GIB, 2 * GIB), 0),
        (MACHINE | SECOND | limit("", 64 * GIB, GIB), 8 * GIB),
    ],
)
def test_the_least_counts(tmp_path, files, expected):
    assert available_memory(system(tmp_path, files)) == expected


def test_first_version_of_control_groups(tmp_path):
    folder = "sys/fs/cgroup/memory/docker/"
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/\n2:memory:/docker\n",
        f"{folder}memory.limit_in_bytes": f"{4 * GIB}\n",
        f"{folder}memory.usage_in_bytes": f"{3 * GIB}\n",
        f"{folder}memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}\n",
    }
    assert available_memory(system(tmp_path, MACHINE | files)) == 2 * GIB


def test_nested_groups_of_the_first_version_and_files_that_cannot_be_read(tmp_path):
    """The outer group leaves least; one without a limit has a number beyond all memory, another no readable file."""
    group = "sys/fs/cgroup/memory"
    files = {"proc/self/cgroup": "2:memory:/outer/inner/leaf\n"}
    for path, most in (("outer", 4 * GIB), ("outer/inner", 9223372036854771712)):
        files |= {
            f"{group}/{path}/memory.limit_in_bytes": f"{most}\n",
            f"{group}/{path}/memory.usage_in_bytes": f"{3 * GIB}\n",
        }
    root = system(tmp_path, MACHINE | files)
    for name in ("memory.limit_in_bytes", "memory.usage_in_bytes"):
        (root / group / "outer/inner/leaf" / name).mkdir(parents=True)
    assert available_memory(root) == GIB


def test_systems_without_these_files(tmp_path, monkeypatch):
    assert 0 < available_memory(tmp_path) <= sys.maxsize
    monkeypatch.setattr(memory_module.os, "sysconf_names", {})
    assert available_memory(tmp_path) == sys.maxsize


def test_a_cache_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    root = system(tmp_path, MACHINE | SECOND | limit("", 4 << 20, 2 << 20))
    monkeypatch.setattr(cache, "available_memory", lambda: available_memory(root))
    config = HostKVConfig(num_layers=1, num_kv_heads=1, head_width=64)
    with pytest.raises(MemoryError, match="2097152 bytes are available"):
        allocate(config, 3 << 20)
    assert allocate(config, 2 << 20).num_pages == 128
