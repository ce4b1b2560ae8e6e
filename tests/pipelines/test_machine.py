"""What a process may use, by the files of Linux that say so."""

import os

import pytest

from pipelines import machine

GIB = 1 << 30
MEMINFO = f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write files below /proc and /sys/fs/cgroup."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "nvidia")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 64 * GIB, "SC_AVPHYS_PAGES": GIB}.get)

    def write(contents):
        for path, content in contents.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return write


def test_without_limits_the_machine_is_free(files):
    files({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"})
    assert machine.count_cores() == 8
    assert machine.read_memory() == (64 * GIB, 32 * GIB)


def test_the_tightest_limit_of_version_2_counts(files):
    files({
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n",
        "cgroup/a/b/cpu.max": "max 100000\n", "cgroup/a/cpu.max": "250000 100000\n",
        "cgroup/a/memory.max": f"{4 * GIB}\n", "cgroup/a/memory.current": f"{3 * GIB}\n",
        "cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "cgroup/a/b/memory.max": "max\n",
    })  # fmt: skip
    assert machine.count_cores() == 3, "two cores and a half"
    assert machine.read_memory() == (4 * GIB, 2 * GIB), "what is only cached is free"


def test_limits_of_version_1_count(files):
    files({
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "4:memory:/x\n1:cpu,cpuacct:/x\n",
        "cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "150000\n", "cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
        "cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "cgroup/memory/x/memory.limit_in_bytes": f"{2 * GIB}\n", "cgroup/memory/x/memory.usage_in_bytes": f"{5 * GIB}\n",
        "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    })  # fmt: skip
    assert machine.count_cores() == 2
    assert machine.read_memory() == (2 * GIB, 0)


def test_gpus_are_those_that_are_visible(files, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.list_gpus() == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "nvidia" / name).mkdir(parents=True)
    assert machine.list_gpus() == ["0", "1"]
    for visible, gpus in {"3,5": ["3", "5"], "": [], "-1": []}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.list_gpus() == gpus
