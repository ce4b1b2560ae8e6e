"""A worker process, and the supervisor that watches it: a job survives a clip that kills its worker.

No `except` catches a segmentation fault. So units run in a child process, under both runners, and the parent sees how the child
ended. A crash (an exit code, or a signal such as SIGSEGV) counts against the row that the child was working on. The unit is
then tried row by row, and a clip on which two workers crashed is rejected as quarantined. A kill from outside (SIGKILL or
SIGTERM: by an operator, by a kernel that lacks memory, with a node that is taken away) never counts, since it says nothing
about the footage. Neither is stored in the output, so a run that is itself killed leaves no trace of them.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from curation import scratch
from curation.errors import Unavailable
from curation.partition import scan
from curation.schema import Row
from pipelines import logs
from pipelines.ledger import Record
from pipelines.phases import Phase, row_key, work
from pipelines.units import Unit

MAX_CRASHES = 2
"""A clip is quarantined once this many workers have crashed on it."""

# A unit whose worker is killed from outside this often in one run is left to the next run.
_MAX_KILLS = 5
_OUTSIDE_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_STOPPED = 143  # exit code of a worker that was asked to stop
# If workers of other units crash on the same machine within these seconds, the machine may be the cause.
_SAME_TIME_S = 2.0
_KEEP_NOTES_S = 60.0
_UNKNOWN_ROW = ""  # stands in for the row of a crash in a pass where rows went in together
_PARENT_CHECK_S = 1.0
_PROGRESS_EVERY_S = 0.5
_EXIT_TIMEOUT_S = 10.0

OnProgress = Callable[[float], None]


@dataclass(frozen=True)
class WorkerDeath:
    """How a worker ended over a unit."""

    unit: str
    row: str | None  # the row it was working on (`row_key`); None: outside of any row
    cause: str  # the exit code or signal, in words
    crashed: bool  # False: it was killed from outside
    time_s: float


@dataclass(frozen=True)
class WorkOrder:
    """How a worker is to do a unit.

    In a phase whose operators pool rows, a pass row by row only looks for the culprit and commits nothing.
    """

    poisoned: Mapping[str, int]  # rows to reject without work on them, and how many workers each of them crashed
    row_by_row: bool


class WorkerProcess:
    """A child process that does units, and the pipe to it."""

    def __init__(self, gpu: str | None = None) -> None:
        ours, theirs = socket.socketpair()
        self._pipe, self._idle, self._started = Connection(ours.detach()), True, False
        command = [sys.executable, "-m", "pipelines.worker", str(theirs.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
            command, pass_fds=[theirs.fileno()], env=_environment(gpu)
        )
        theirs.close()

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
            if _crashed(code) and not self._started:
                raise Unavailable(f"the worker process could not start ({_cause(code)}); its message is above") from None
            return WorkerDeath(unit.name, row, _cause(code), _crashed(code), time.time())

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


class Interrupted(Exception):
    """The supervisor was asked to give up its unit."""


# Held while a unit is tried again. So units that crash, or that need more memory together than there is, are tried one by one.
_one_retry_at_a_time = threading.Lock()


class Supervisor:
    """Does units in a worker process, and starts another worker when one dies.

    gpu: the only GPU that the workers see, as CUDA_VISIBLE_DEVICES names it; None: those of this process.
    """

    def __init__(self, gpu: str | None = None) -> None:
        self._gpu = gpu
        self._worker: WorkerProcess | None = None
        self._crash_notes: list[Path] = []
        self._starting, self._interrupted = threading.Lock(), threading.Event()

    def do(self, phase: Phase, unit: Unit, on_progress: OnProgress = lambda _: None) -> Record:
        """Do a unit and return its record. `failure` is set if workers crash outside of any clip or are killed too often.

        Raises `Interrupted` after `interrupt`.
        """
        result = self._try(phase, unit, WorkOrder({}, row_by_row=False), on_progress)
        if not isinstance(result, WorkerDeath):
            return result
        with _one_retry_at_a_time:
            return self._do_again(phase, unit, on_progress, replace(result, row=_UNKNOWN_ROW))

    def _do_again(self, phase: Phase, unit: Unit, on_progress: OnProgress, first: WorkerDeath) -> Record:
        """Do a unit over which a worker has died."""
        deaths = [first]
        simultaneous: set[WorkerDeath] = set()  # kept here, since the notes of other crashes are removed after a while
        row_by_row, cleared = first.crashed, False
        while True:
            simultaneous |= {death for death in deaths if death.crashed and _crashed_with_others(death)}
            crashes = Counter(death.row for death in deaths if death.crashed and death not in simultaneous)
            if crashes[None] >= MAX_CRASHES:
                return _failed(phase, unit, f"crashed its worker outside of any clip: {_count_causes(deaths)}", deaths)
            if len(deaths) - crashes.total() >= _MAX_KILLS:
                return _failed(
                    phase,
                    unit,
                    f"its worker ended for reasons outside the footage: {_count_causes(deaths)}; does the machine lack memory?",
                    deaths,
                )
            # Once a culprit is found, the other clips go in together again: some results are pooled over them.
            poisoned = {row: count for row, count in crashes.items() if row and count >= MAX_CRASHES}
            row_by_row = row_by_row and deaths[-1].row not in poisoned
            result = self._try(phase, unit, WorkOrder(poisoned, row_by_row), on_progress)
            if isinstance(result, WorkerDeath):
                deaths.append(result if row_by_row or cleared else replace(result, row=_UNKNOWN_ROW))
                row_by_row = row_by_row or result.crashed
            elif row_by_row and _pools_rows(phase) and not result.failure:
                row_by_row, cleared = False, True
            else:
                result.deaths = _causes(deaths)
                return result

    def _try(self, phase: Phase, unit: Unit, order: WorkOrder, on_progress: OnProgress) -> Record | WorkerDeath:
        """Do a unit once."""
        result = self._running().do(phase, unit, order, on_progress)
        if isinstance(result, WorkerDeath):
            self.stop()
            if self._interrupted.is_set():
                raise Interrupted
            if result.crashed:
                self._crash_notes += _write_crash_note(result)
                self._interrupted.wait(_pause_s(unit.name) if _crashed_with_others(result) else 0)
        return result

    def interrupt(self) -> None:
        """Kill the worker process. `do`, in another thread, then raises `Interrupted`, and no worker starts again."""
        with self._starting:
            self._interrupted.set()
            if self._worker:
                self._worker.kill()

    def release(self) -> None:
        """Let an idle worker process exit, before `close` waits for that."""
        if self._worker:
            self._worker.release()

    def stop(self) -> None:
        """End the worker process, if there is one."""
        with self._starting:
            stopped, self._worker = self._worker, None
        if stopped:
            stopped.stop()

    def close(self) -> None:
        """End the worker process, and remove the notes of its crashes."""
        self.stop()
        for note in self._crash_notes:
            with suppress(OSError):  # other supervisors may have notes in that folder
                note.unlink(missing_ok=True)
                note.parent.rmdir()
        self._crash_notes.clear()

    def _running(self) -> WorkerProcess:
        with self._starting:
            if self._interrupted.is_set():
                raise Interrupted
            self._worker = self._worker or WorkerProcess(self._gpu)
            return self._worker


def _pools_rows(phase: Phase) -> bool:
    """Whether a clip's results depend on the clips that go in with it. A pass row by row then only looks for the culprit."""
    return any(op.batch > 1 for op in phase.chain)


def _failed(phase: Phase, unit: Unit, reason: str, deaths: list[WorkerDeath]) -> Record:
    return Record(phase.name, unit.name, deaths=_causes(deaths), failure=f"{unit.uri or unit.name}: {reason}")


def _environment(gpu: str | None) -> dict[str, str]:
    """Return the child's environment, in which it finds modules where this process finds them."""
    paths = [os.environ.get("PYTHONPATH", ""), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path))}
    return environment if gpu is None else {**environment, "CUDA_VISIBLE_DEVICES": gpu}


def _crashed(code: int) -> bool:
    return code != _STOPPED and -code not in _OUTSIDE_SIGNALS


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def _causes(deaths: list[WorkerDeath]) -> dict[str, int]:
    return dict(Counter(death.cause for death in deaths))


def _count_causes(deaths: list[WorkerDeath]) -> str:
    return ", ".join(f"{count} x {cause}" for cause, count in _causes(deaths).items())


def _crash_notes_folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"gamecraft-crashes-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _write_crash_note(death: WorkerDeath) -> list[Path]:
    """Tell the supervisors of other workers on this machine about a crash, and return the note.

    A note is an empty file whose name is the time and the unit. Notes that are too old are removed.
    """
    with suppress(OSError):  # a full disk must not hide the crash itself
        note = _crash_notes_folder() / f"{death.time_s} {death.unit}"
        for other in _crash_notes_folder().iterdir():
            if death.time_s - float(other.name.partition(" ")[0]) > _KEEP_NOTES_S:
                other.unlink(missing_ok=True)
        note.touch()
        return [note]
    return []


def _crashed_with_others(death: WorkerDeath) -> bool:
    """Whether a worker of another unit crashed on this machine at the same time. The machine may then be the cause."""
    with suppress(OSError):
        notes = [note.name.split(" ", 1) for note in _crash_notes_folder().iterdir()]
        return any(unit != death.unit and abs(float(time_s) - death.time_s) < _SAME_TIME_S for time_s, unit in notes)
    return False


def _pause_s(unit: str) -> float:
    """Return a pause that differs from unit to unit, so that two that crashed at the same time do not do so again."""
    return 2 * _SAME_TIME_S * (zlib.crc32(unit.encode()) % 16) / 16


def main() -> None:
    """Be the child: do units until the pipe closes or the parent is gone."""
    pipe, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole process group; the parent handles it
    signal.signal(signal.SIGTERM, lambda *_: _exit_now())
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    logs.configure_worker()
    pipe.send(("started", None))
    last_phase = ""
    while True:
        try:
            phase, unit, order = pipe.recv()
            if phase.name != last_phase:
                scan.clear_caches()  # the next phase needs the memory, and not the signals of the last source
                last_phase = phase.name
            pipe.send(("done", _do_unit(pipe, phase, unit, order)))
        except (EOFError, ConnectionError):
            return


def _do_unit(pipe: Connection, phase: Phase, unit: Unit, order: WorkOrder) -> Record:
    sent_s = time.monotonic()

    def on_progress(part: float) -> None:
        nonlocal sent_s
        if time.monotonic() - sent_s > _PROGRESS_EVERY_S:
            sent_s = time.monotonic()
            pipe.send(("part", part))

    def on_row(row: Row | None) -> None:
        pipe.send(("row", row_key(row) if row else None))

    reasons = {row: f"quarantined: killed its worker {count} times" for row, count in order.poisoned.items()}
    commits = not (order.row_by_row and _pools_rows(phase))
    try:
        return work(phase, unit, on_progress, reasons, on_row if order.row_by_row else None, commits)
    finally:
        scratch.remove_folder()  # now, since Ray kills the processes that its workers started


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    _exit_now()


def _exit_now() -> None:
    """Exit at once, whatever the main thread is doing."""
    scratch.remove_folder()
    os._exit(_STOPPED)


if __name__ == "__main__":
    main()
