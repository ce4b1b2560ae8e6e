"""Run a command, and measure CPU-seconds, time and peak memory of it and of every process that it starts.

Processes that detach, as Ray's do, count too: this process adopts them (Linux only). A process whose parent ignores its end is
missing from the kernel's own sum of children, so its CPU time is taken from the last sample of it.
"""

import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_SAMPLE_S = 0.2  # between two looks at the processes
_MEMORY_EVERY = 2  # samples between two looks at the memory, which cost more
_PATIENCE_S = 5.0  # for processes that outlive the command, before they are ended
_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
TIMED_OUT = 124  # the status of a command that was ended at its limit, as of the program `timeout`


class Usage(NamedTuple):
    """What a command and all its descendants used. Memory that several share counts once (PSS)."""

    status: int  # of the command itself: its exit status, or minus the signal that ended it
    cpu_s: float
    wall_s: float
    peak_mib: float


class ProcessTimes(NamedTuple):
    """One process at one moment."""

    parent: int
    started: int  # clock ticks since boot: with the pid, this names a process for good
    own_s: float  # CPU-seconds
    reaped_s: float  # CPU-seconds of the descendants whose end it and they waited for


def measure(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None, log: str = "", limit_s: float = 3e3
) -> Usage:
    """Run a command to its end, or end it after `limit_s`. Its output goes to the file `log`, or nowhere."""
    _adopt_orphans()
    others = set(_children(os.getpid(), _processes()))
    before, began = children_cpu_s(), time.monotonic()
    with open(log or os.devnull, "wb") as output:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    tree, status, wall_s, timed_out = _Tree(others, process.pid), None, 0.0, False
    deadline, signals = began + limit_s, iter((signal.SIGTERM,))
    while True:
        time.sleep(_SAMPLE_S)
        running, now = tree.sample(), time.monotonic()
        if status is None and (status := process.poll()) is not None:
            wall_s, deadline = now - began, now + _PATIENCE_S
        if status is not None and not set(running) - {process.pid}:
            break
        if now > deadline:
            timed_out, deadline = timed_out or status is None, now + _PATIENCE_S
            _end(running, next(signals, signal.SIGKILL))
    return Usage(TIMED_OUT if timed_out else status, children_cpu_s() - before + tree.lost_s, wall_s, tree.peak_mib)


class _Tree:
    """All descendants of this process, except those of `others`, from one sample to the next."""

    def __init__(self, others: set[int], command: int) -> None:
        self.lost_s = 0.0  # CPU-seconds of ended processes that are in no parent's sum
        self.peak_mib = 0.0
        self._others, self._command = others, command
        self._last: dict[tuple[int, int], ProcessTimes] = {}
        self._samples = 0

    def sample(self) -> list[int]:
        """Look at the tree, reap what was adopted and has ended, and return the pids of what has not."""
        processes = _processes()
        pids = [pid for pid in _descendants(os.getpid(), processes) if pid not in self._others]
        current = {(pid, processes[pid].started): processes[pid] for pid in pids}
        own = processes[os.getpid()]
        current[os.getpid(), own.started] = own
        self.lost_s += lost_cpu_s(self._last, current)
        self._last = current
        if self._samples % _MEMORY_EVERY == 0:
            self.peak_mib = max(self.peak_mib, _pss_mib(pids))
        self._samples += 1
        # The command itself is left to `subprocess`, which has to learn its status.
        adopted = {pid for pid in pids if processes[pid].parent == os.getpid() and pid != self._command}
        return [pid for pid in pids if pid not in adopted or not _reap(pid)]


def lost_cpu_s(last: Mapping[tuple[int, int], ProcessTimes], current: Mapping[tuple[int, int], ProcessTimes]) -> float:
    """Return CPU-seconds of processes that ended between two samples and that no other process has in its sum."""
    ended_s = sum(last[key].own_s + last[key].reaped_s for key in last.keys() - current.keys())
    reaped_s = sum(current[key].reaped_s - last[key].reaped_s for key in last.keys() & current.keys())
    return max(0.0, ended_s - reaped_s)


def _reap(pid: int) -> bool:
    """Whether an adopted process has ended; its CPU time is then in the kernel's sum of our children."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _processes() -> dict[int, ProcessTimes]:
    """Return every process of this machine, by pid."""
    entries = {int(entry): _times(entry) for entry in os.listdir("/proc") if entry.isdigit()}
    return {pid: times for pid, times in entries.items() if times}


def _times(pid: str) -> ProcessTimes | None:
    try:
        fields = Path("/proc", pid, "stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return None
    user, system, children_user, children_system = (int(field) * _TICK_S for field in fields[11:15])
    return ProcessTimes(int(fields[1]), int(fields[19]), user + system, children_user + children_system)


def held_mib() -> float:
    """Return the memory of all descendants of this process, now. What several share counts once (PSS)."""
    return _pss_mib(descendants(os.getpid()))


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs, parents first."""
    return _descendants(pid, _processes())


def _children(pid: int, processes: Mapping[int, ProcessTimes]) -> Iterable[int]:
    return (child for child, times in processes.items() if times.parent == pid)


def _descendants(pid: int, processes: Mapping[int, ProcessTimes]) -> list[int]:
    offspring: dict[int, list[int]] = {}
    for child, times in processes.items():
        offspring.setdefault(times.parent, []).append(child)
    reached = list(offspring.get(pid, ()))
    for child in reached:
        reached += offspring.get(child, ())
    return reached


def _pss_mib(pids: Iterable[int]) -> float:
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path("/proc", str(pid), "smaps_rollup").read_bytes()
            kib += sum(int(match) for match in re.findall(rb"^Pss:\s+(\d+) kB", text, re.M))
    return kib / 1024


def _adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel lets no process adopt its orphaned descendants")


def children_cpu_s() -> float:
    """Return the CPU-seconds of this process's children that have ended and were waited for, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end(pids: Iterable[int], how: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
