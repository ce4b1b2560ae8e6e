"""What this process may use of its machine: cores, memory and GPUs, within the limits of a container."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_PROC, _CGROUPS, _NVIDIA = Path("/proc"), Path("/sys/fs/cgroup"), Path("/proc/driver/nvidia/gpus")


class Memory(NamedTuple):
    """Bytes that there are, and those of them that are free."""

    total: int
    free: int


def count_cores() -> int:
    """Return how many cores this process may use: those it is bound to, within the CPU time that its container gets."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [float(quota) / float(period) for quota, period in _cpu_limits() if quota.isdigit()]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def _cpu_limits() -> Iterator[tuple[str, str]]:
    """Yield quota and period of each control group of this process. A quota that is no positive number is no limit."""
    for folder in _control_groups("cpu"):
        words = _read(folder / "cpu.max").split()  # version 2
        if len(words) == 2:
            yield words[0], words[1]
        elif quota := _read(folder / "cpu.cfs_quota_us"):  # version 1
            yield quota, _read(folder / "cpu.cfs_period_us")


def read_memory() -> Memory:
    """Return the memory of this machine, within the limit of a container. Files that are only cached count as free."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    for line in _read(_PROC / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    for folder in _control_groups("memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if limit.isdigit() and int(limit) < total:
            used = int(_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or 0)
            total, free = int(limit), min(free, int(limit) - used + _cached_bytes(folder))
    return Memory(total, max(0, min(free, total)))


def _cached_bytes(group: Path) -> int:
    """Return the bytes of files that a control group caches and that the kernel can drop."""
    statistics = dict(line.split() for line in _read(group / "memory.stat").splitlines())
    return int(statistics.get("total_inactive_file") or statistics.get("inactive_file") or 0)


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, of either version, each before those that contain it."""
    for line in _read(_PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            yield _CGROUPS / controllers / group.relative_to("/")


def list_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, by what CUDA_VISIBLE_DEVICES calls them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(sorted(_NVIDIA.iterdir()) if _NVIDIA.is_dir() else ())]


def _read(path: Path) -> str:
    """Return the text of a file. Empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
