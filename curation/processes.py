"""Values that belong to one process: connections, open decoders, threads. A forked child must not use or close its parent's.

A DataLoader forks its workers. Two processes that read from one socket get each other's bytes, and closing what a parent opened
waits for threads that the child does not have. So every cache of such values in this project is a `ProcessLocal` or uses
`per_process`. Plain data (a probed source, frames, a table) may be inherited: the child's copy is as good as the original.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Values of parents. They are kept for ever, since dropping the last reference would close them.
_inherited: list[object] = []
_making = threading.RLock()


def _replace_lock() -> None:
    """Replace the lock in a forked child: a thread that the child does not have may hold the parent's."""
    global _making
    _making = threading.RLock()


os.register_at_fork(after_in_child=_replace_lock)


class ProcessLocal(Generic[T]):
    """Holds one value that only the process that stored it can see. In a forked child it is empty."""

    def __init__(self) -> None:
        self._held: tuple[int, T] | None = None

    def get(self) -> T | None:
        """Return the value of this process, or None if it stored none."""
        held = self._held
        return held[1] if held and held[0] == os.getpid() else None

    def put(self, value: T | None) -> None:
        """Replace the value. An earlier value of this process is released. A parent's value stays open and unused."""
        if self._held and self._held[0] != os.getpid():
            _inherited.append(self._held[1])
        self._held = None if value is None else (os.getpid(), value)


class per_process(Generic[P, T]):  # noqa: N801  a decorator
    """Call the function once in each process for the same arguments, and return that value from then on.

    A forked child calls it again. Threads that call it at the same time get the same value. `cache_clear` drops the values of
    this process.
    """

    def __init__(self, make: Callable[P, T]) -> None:
        self._make, self._values = make, ProcessLocal[dict[Any, T]]()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        key, values = (args, *sorted(kwargs.items())), self._values.get()
        if values is None or key not in values:
            with _making:
                values = self._values.get()
                if values is None:
                    self._values.put(values := {})
                if key not in values:
                    values[key] = self._make(*args, **kwargs)
        return values[key]

    def cache_clear(self) -> None:
        self._values.put(None)


def pid_namespace() -> str:
    """Name the space in which a process number is unique: this boot of the machine, and the PID namespace in it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """Return the start time of a process in this PID namespace, as /proc gives it. Empty if no such process runs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *others = file.read().rpartition(") ")[2].split()
    except FileNotFoundError:
        return "" if os.path.isdir("/proc/self") or not _exists(pid) else "unknown"
    return "" if state in "ZX" else others[18]


def _exists(pid: int) -> bool:
    """Whether a process has this number, on systems without /proc. A zombie counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
