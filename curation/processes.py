"""What belongs to one process: connections, open decoders, threads. A forked child must neither use nor close its parent's.

A DataLoader forks its workers. Two processes that read from one socket get each other's bytes, and closing what a parent opened
waits for threads that the child does not have. So every cache of such a thing in this project is kept by `OwnValue` or
`per_process`. What is plain data (a probed source, frames, a table) may be inherited: the child's copy is as good.
"""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

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


class per_process(Generic[T]):  # noqa: N801  a decorator
    """Call the function once in each process and return that value from then on; a forked child calls it again.

    Threads that ask at the same time get the same value. `cache_clear` forgets this process's value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._own = make, OwnValue[T]()

    def __call__(self) -> T:
        value = self._own.get()
        if value is None:
            with _making:
                value = self._own.get()
                if value is None:
                    value = self._make()
                    self._own.put(value)
        return value

    def cache_clear(self) -> None:
        self._own.put(None)
