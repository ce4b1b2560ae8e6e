"""What belongs to one process: connections, open decoders, threads. A forked child must neither use nor close its parent's.

A DataLoader forks its workers. Two processes that read from one socket get each other's bytes, and closing what a parent opened
waits for threads that the child does not have. So every cache of such a thing in this project is kept by `OwnValue` or
`per_process`. What is plain data (a probed source, frames, a table) may be inherited: the child's copy is as good.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Of a parent: kept for ever, since dropping the last reference would close it.
_inherited: list[object] = []
_making = threading.RLock()


def _forked() -> None:
    """Replace the lock in a forked child: a thread that the child does not have may hold the parent's."""
    global _making
    _making = threading.RLock()


os.register_at_fork(after_in_child=_forked)


class OwnValue(Generic[T]):
    """A place for one value, seen only by the process that put it there. A forked child finds the place empty."""

    def __init__(self) -> None:
        self._held: tuple[int, T] | None = None

    def get(self) -> T | None:
        """Return the value of this process; None where it has put none."""
        held = self._held
        return held[1] if held and held[0] == os.getpid() else None

    def put(self, value: T | None) -> None:
        """Replace the value. An earlier one of this process is dropped, a parent's stays open and unused."""
        if self._held and self._held[0] != os.getpid():
            _inherited.append(self._held[1])
        self._held = None if value is None else (os.getpid(), value)


class per_process(Generic[P, T]):  # noqa: N801  a decorator
    """Call the function once in each process for the same arguments, and return that value from then on.

    A forked child calls it again. Threads that ask at the same time get the same value. `cache_clear` forgets this process's
    values.
    """

    def __init__(self, make: Callable[P, T]) -> None:
        self._make, self._own = make, OwnValue[dict[Any, T]]()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        key, values = (args, *sorted(kwargs.items())), self._own.get()
        if values is None or key not in values:
            with _making:
                values = self._own.get()
                if values is None:
                    self._own.put(values := {})
                if key not in values:
                    values[key] = self._make(*args, **kwargs)
        return values[key]

    def cache_clear(self) -> None:
        self._own.put(None)


def space() -> str:
    """Name the space in which a process number means something: this start of the machine, and the PID namespace in it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> str:
    """Return the start time of a process in this PID namespace, as /proc gives it; empty if no such process runs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *others = file.read().rpartition(") ")[2].split()
    except FileNotFoundError:
        return "" if os.path.isdir("/proc/self") or not _answers(pid) else "unknown"
    return "" if state in "ZX" else others[18]


def _answers(pid: int) -> bool:
    """Whether a process of this number can be signalled, on systems without /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
