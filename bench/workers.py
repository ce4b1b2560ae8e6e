"""Measure what it costs to start workers on one machine: forked from one process, or an interpreter each.

python -m bench.workers --count 4
"""

import argparse
import sys
import time
from collections.abc import Sequence

from bench.machine import describe
from bench.process_tree import children_cpu_s, held_mib
from pipelines.worker_process import Origin, WorkerProcess


def measure(count: int, origin: Origin | None) -> tuple[float, float, float]:
    """Start workers and end them. Return CPU-seconds, MiB that they hold together, and seconds until all had started."""
    began, before = time.monotonic(), children_cpu_s()
    workers = [WorkerProcess(origin) for _ in range(count)]
    for worker in workers:
        worker.wait_until_started()
    seconds, held = time.monotonic() - began, held_mib()
    for worker in workers:
        worker.stop()
    if origin:
        origin.close()
    return children_cpu_s() - before, held, seconds


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
