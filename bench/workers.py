"""Measure what it costs to start workers on one machine: forked from one process, or an interpreter each.

python -m bench.workers --count 4
"""

import argparse
import os
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.machine import describe
from pipelines.worker_process import Origin, WorkerProcess


def measure(count: int, origin: Origin | None) -> tuple[float, float, float]:
    """Start workers and end them. Return CPU-seconds, MiB that they hold together, and seconds until all had started."""
    began, before = time.monotonic(), _children_cpu_s()
    workers = [WorkerProcess(origin) for _ in range(count)]
    for worker in workers:
        worker.wait_until_started()
    seconds, held = time.monotonic() - began, _held_mib()
    for worker in workers:
        worker.stop()
    if origin:
        origin.close()
    return _children_cpu_s() - before, held, seconds


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _held_mib() -> float:
    """Return the memory of this process's children and theirs. What several share counts once (PSS)."""
    parents = {int(folder.name): _parent(folder) for folder in Path("/proc").iterdir() if folder.name.isdigit()}
    ours = [pid for pid, parent in parents.items() if os.getpid() in (parent, parents.get(parent))]
    texts = [_read(Path("/proc", str(pid), "smaps_rollup")) for pid in ours]
    return sum(int(kib) for text in texts for kib in re.findall(rb"^Pss:\s+(\d+) kB", text, re.M)) / 1024


def _parent(folder: Path) -> int:
    return int((_read(folder / "stat").rpartition(b") ")[2].split() or [b"0", b"0"])[1])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4, help="how many workers")
    options = parser.parse_args(words)
    lines = [describe(), "| workers | CPU-s | MiB | seconds |", "|---|---|---|---|"]
    for name, origin in (("an interpreter each", None), ("forked", Origin())):
        cpu_s, held, seconds = measure(options.count, origin)
        lines.append(f"| {options.count}, {name} | {cpu_s:.1f} | {held:.0f} | {seconds:.1f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
