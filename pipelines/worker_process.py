"""Worker processes as their driver sees them: how they are started, given units, and ended, and how they died."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Protocol

from curation.errors import Unavailable
from pipelines.ledger import Record
from pipelines.phases import Phase
from pipelines.units import Unit
from pipelines.worker import STOPPED, WorkOrder

_OUTSIDE_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_EXIT_TIMEOUT_S = 10.0
# An origin that is killed from outside while it starts is started again so often.
_MAX_STARTS = 5

OnProgress = Callable[[float], None]


@dataclass(frozen=True)
class WorkerDeath:
    """How a worker ended over a unit."""

    unit: str
    row: str | None  # the row it was working on (`row_key`); None: outside of any row
    cause: str  # the exit code or signal, in words
    crashed: bool  # False: it was killed from outside
    time_s: float


class _Process(Protocol):
    """What `subprocess.Popen` and `_ForkedProcess` have in common."""

    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


class WorkerProcess:
    """A child process that does units, and the pipe to it."""

    def __init__(self, origin: "Origin | None" = None, gpu: str | None = None) -> None:
        """Start the child, from an origin if there is one.

        gpu: the only GPU that it sees, as CUDA_VISIBLE_DEVICES names it; None: those of this process.
        """
        ours, theirs = socket.socketpair()
        self._pipe, self._idle, self._started = Connection(ours.detach()), True, False
        self._process: _Process
        with theirs:
            if origin:
                self._process = origin.fork(theirs, gpu)
            else:
                visible = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
                self._process = _start_python([str(theirs.fileno()), str(os.getpid())], theirs, visible)

    def do(self, phase: Phase, unit: Unit, order: WorkOrder, on_progress: OnProgress) -> Record | WorkerDeath:
        """Do a unit. Return its record, or how the child ended over it. `on_progress` gets the part done, 0 to 1.

        Unavailable if the child cannot even start, for example because a package is missing.
        """
        row: str | None = None
        try:
            self._idle = False
            self._pipe.send((phase, unit, order))
            while True:
                kind, value = self._pipe.recv()
                if kind == "done":
                    self._idle = True
                    record: Record = value
                    return record
                if kind == "row":
                    row = value
                elif kind == "part":
                    on_progress(value)
                else:
                    self._started = True
        except (EOFError, ConnectionError):
            code = self._process.wait()
            if has_crashed(code) and not self._started:
                raise _no_start(code) from None
            return WorkerDeath(unit.name, row, describe_exit(code), has_crashed(code), time.time())

    def wait_until_started(self) -> None:
        """Wait until the child can take a unit."""
        self._started = self._started or bool(self._pipe.recv())

    def kill(self) -> None:
        """Kill the child. `do`, in another thread, then returns how it ended."""
        self._process.kill()

    def release(self) -> None:
        """Let an idle child exit."""
        self._pipe.close()

    def stop(self) -> None:
        """End the child. An idle one exits by itself, after it has removed what its libraries left in shared memory."""
        self._pipe.close()
        if self._idle:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_TIMEOUT_S)
        self._process.kill()
        self._process.wait()


class Origin:
    """Forks workers from one process that has imported what they need. Threads may share it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock, self._killed = threading.Lock(), False

    def fork(self, pipe: socket.socket, gpu: str | None) -> "_ForkedProcess":
        """Fork a worker with its end of a pipe. Unavailable if the origin cannot start, or after `kill`."""
        with self._lock:
            code = -signal.SIGKILL
            for _ in range(_MAX_STARTS):
                if self._killed or has_crashed(code):
                    break
                process, control = self._running()
                status, theirs = Pipe(duplex=False)
                with theirs, suppress(ConnectionError):
                    socket.send_fds(control, [(gpu or " ").encode()], [pipe.fileno(), theirs.fileno()])
                with suppress(EOFError):
                    return _ForkedProcess(status.recv(), status)
                status.close()
                code = process.wait()
            raise _no_start(code)

    def _running(self) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        if self._process is None or self._control is None or self._process.poll() is not None:
            self._close_control()
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process = _start_python(["--fork", str(theirs.fileno())], theirs)
        return self._process, self._control

    def _close_control(self) -> None:
        if self._control:
            self._control.close()

    def kill(self) -> None:
        """Kill the origin for good. Its workers notice within a second; a `fork` in another thread fails."""
        self._killed = True
        if self._process:
            self._process.kill()

    def close(self) -> None:
        """End the origin."""
        self._close_control()
        if self._process:
            self._process.wait()


class _ForkedProcess:
    """A worker that an origin has forked."""

    def __init__(self, pid: int, status: Connection) -> None:
        self._pid, self._status, self._lock = pid, status, threading.Lock()
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Where the origin is gone, so is the worker, and somebody killed both."""
        with self._lock:
            if self._code is None:
                if not self._status.poll(timeout):
                    raise subprocess.TimeoutExpired(f"worker {self._pid}", timeout or 0.0)
                try:
                    self._code = self._status.recv()
                except EOFError:
                    self._code = -signal.SIGKILL
                self._status.close()
            return self._code

    def kill(self) -> None:
        with suppress(OSError):  # it has ended, and another thread may be reading that
            if self._code is None and not self._status.poll(0):
                os.kill(self._pid, signal.SIGKILL)


def _start_python(
    words: list[str], file: socket.socket, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a process of `pipelines.worker` with an open file. It finds modules where this process finds them."""
    paths = [os.environ.get("PYTHONPATH", ""), *sys.path]
    python_path = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    return subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        [sys.executable, "-m", "pipelines.worker", *words],
        pass_fds=[file.fileno()],
        env={**os.environ, "PYTHONPATH": python_path, **(environment or {})},
    )


def _no_start(code: int) -> Unavailable:
    return Unavailable(f"the worker process could not start ({describe_exit(code)}); its message is above")


def has_crashed(code: int) -> bool:
    return code != STOPPED and -code not in _OUTSIDE_SIGNALS


def describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
