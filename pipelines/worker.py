"""A worker process, and the process that watches it: what lets a job outlive a clip that kills its worker.

No `except` sees a segmentation fault. So units run in a child process, under the local runner as under Ray, and the parent sees
how the child ended. A crash (an exit code, or a signal such as SIGSEGV) counts against what the child was working on; the unit
is then tried clip by clip, and a clip that two workers crashed on is rejected as quarantined. A kill from outside (SIGKILL,
SIGTERM: an operator, the kernel short of memory, a node that is taken away) never counts: it says nothing about the footage.
Nothing is stored about either, so a run that is killed itself leaves no trace.
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
from curation.partition import scan
from curation.schema import Row
from pipelines import logs
from pipelines.ledger import Record
from pipelines.phases import Phase, row_key, work
from pipelines.units import Unit

MAX_CRASHES = 2
"""On how many workers a clip must crash to be quarantined."""

# So often may a unit's worker be killed from outside in one run before the unit is left to the next run.
_MAX_KILLS = 5
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_STOPPED = 143  # the exit code of a worker that was told to stop
# Workers of other units that crash on the same machine within these seconds speak of the machine.
_TOGETHER_S = 2.0
_FORGET_S = 60.0
_NOT_LOOKED_FOR = ""  # the row of a crash among rows that went in together
_PARENT_CHECK_S = 1.0
_SHOW_EVERY_S = 0.5
_FAREWELL_S = 10.0

Show = Callable[[float], None]


@dataclass(frozen=True)
class Death:
    """How a worker ended over a unit: on which row (None: outside of any), from what, and when."""

    unit: str
    row: str | None
    cause: str
    crashed: bool
    time_s: float


@dataclass(frozen=True)
class Attempt:
    """How to do a unit: which rows to reject unseen (and how many workers each crashed), and whether to go row by row.

    In a phase whose operators take several rows at once, a pass row by row only looks for the culprit and commits nothing.
    """

    poison: Mapping[str, int]
    careful: bool


class WorkerProcess:
    """A child process that does units, and the pipe to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._pipe, self._idle, self._started = Connection(ours.detach()), True, False
        command = [sys.executable, "-m", "pipelines.worker", str(theirs.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and words
            command, pass_fds=[theirs.fileno()], env=_environment()
        )
        theirs.close()

    def do(self, phase: Phase, unit: Unit, attempt: Attempt, show: Show) -> Record | Death:
        """The unit's record, or how the child ended over it. `show` gets the part done, 0 to 1.

        ChildProcessError where the child cannot even start, as where a package is missing.
        """
        row: str | None = None
        try:
            self._idle = False
            self._pipe.send((phase, unit, attempt))
            while True:
                kind, value = self._pipe.recv()
                if kind == "done":
                    self._idle = True
                    record: Record = value
                    return record
                if kind == "row":
                    row = value
                elif kind == "part":
                    show(value)
                else:
                    self._started = True
        except (EOFError, ConnectionError):
            code = self._process.wait()
            if _crashed(code) and not self._started:
                raise ChildProcessError(f"the worker process could not start ({_cause(code)}); its message is above") from None
            return Death(unit.name, row, _cause(code), _crashed(code), time.time())

    def stop(self) -> None:
        """End the child; an idle one leaves by itself, once it has removed what its libraries left in shared memory."""
        self._pipe.close()
        if self._idle:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL_S)
        self._process.kill()
        self._process.wait()


class Supervisor:
    """Does units in a worker process, and starts another one where it dies."""

    def __init__(self) -> None:
        self._worker: WorkerProcess | None = None
        self._notes: list[Path] = []

    def do(self, phase: Phase, unit: Unit, show: Show = lambda _: None) -> Record:
        """The unit's record. Its `failure` says so if the worker crashed outside of any clip, or was killed too often."""
        deaths: list[Death] = []
        together: set[Death] = set()  # notes of other crashes do not last
        careful = cleared = False
        while True:
            together |= {death for death in deaths if death.crashed and _crashed_together(death)}
            crashes = Counter(death.row for death in deaths if death.crashed and death not in together)
            if crashes[None] >= MAX_CRASHES:
                return _failed(phase, unit, f"crashed its worker outside of any clip: {_causes(deaths)}")
            if len(deaths) - crashes.total() >= _MAX_KILLS:
                return _failed(
                    phase, unit, f"its worker ended for reasons outside the footage: {_causes(deaths)}; is memory short?"
                )
            # A clip that is found goes out, and the others are worked on together again: some results are pooled over them.
            poison = {row: count for row, count in crashes.items() if row and count >= MAX_CRASHES}
            careful = careful and not (deaths and deaths[-1].row in poison)
            end = self._running().do(phase, unit, Attempt(poison, careful), show)
            if isinstance(end, Death):
                self.stop()
                deaths.append(end if careful or cleared else replace(end, row=_NOT_LOOKED_FOR))
                careful = careful or end.crashed
                if end.crashed:
                    self._notes += _note(end)
                    time.sleep(_apart_s(unit.name) if _crashed_together(end) else 0)
            elif careful and _pools(phase) and not end.failure:
                careful, cleared = False, True
            else:
                return end

    def stop(self) -> None:
        """End the worker process, if there is one."""
        if self._worker:
            self._worker.stop()
        self._worker = None

    def close(self) -> None:
        """End the worker process, and remove the notes of its crashes."""
        self.stop()
        for note in self._notes:
            with suppress(OSError):  # others may have notes in that folder
                note.unlink(missing_ok=True)
                note.parent.rmdir()
        self._notes.clear()

    def _running(self) -> WorkerProcess:
        self._worker = self._worker or WorkerProcess()
        return self._worker


def _pools(phase: Phase) -> bool:
    """Whether a clip's results depend on the clips that go in with it: then a pass clip by clip only looks for the culprit."""
    return any(op.batch > 1 for op in phase.chain)


def _failed(phase: Phase, unit: Unit, why: str) -> Record:
    return Record(phase.name, unit.name, failure=f"{unit.uri or unit.name}: {why}")


def _environment() -> dict[str, str]:
    """The environment of the child, which finds modules where this process finds them."""
    paths = [os.environ.get("PYTHONPATH", ""), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path))}


def _crashed(code: int) -> bool:
    return code != _STOPPED and -code not in _FROM_OUTSIDE


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def _causes(deaths: list[Death]) -> str:
    return ", ".join(f"{count} x {cause}" for cause, count in Counter(death.cause for death in deaths).items())


def _notes() -> Path:
    folder = Path(tempfile.gettempdir(), f"gamecraft-crashes-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _note(death: Death) -> list[Path]:
    """Let those who watch other workers on this machine know of a crash. A note is an empty file: its name says all."""
    with suppress(OSError):  # a full disk must not hide the crash itself
        note = _notes() / f"{death.time_s} {death.unit}"
        for old in _notes().iterdir():
            if death.time_s - float(old.name.partition(" ")[0]) > _FORGET_S:
                old.unlink(missing_ok=True)
        note.touch()
        return [note]
    return []


def _crashed_together(death: Death) -> bool:
    """Whether a worker of another unit crashed on this machine at the same time: then it may be the machine."""
    with suppress(OSError):
        notes = [note.name.split(" ", 1) for note in _notes().iterdir()]
        return any(unit != death.unit and abs(float(time_s) - death.time_s) < _TOGETHER_S for time_s, unit in notes)
    return False


def _apart_s(unit: str) -> float:
    """A pause that differs from unit to unit, so that two that crashed at once do not do so again."""
    return 2 * _TOGETHER_S * (zlib.crc32(unit.encode()) % 16) / 16


def main() -> None:
    """The child: do units until the pipe closes or the parent is gone."""
    pipe, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides what it means
    signal.signal(signal.SIGTERM, lambda *_: _leave())
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    logs.configure_worker()
    pipe.send(("started", None))
    last = ""
    while True:
        try:
            phase, unit, attempt = pipe.recv()
            if phase.name != last:
                scan.forget()  # the next phase needs the memory, not the last source's signals
                last = phase.name
            pipe.send(("done", _attempted(pipe, phase, unit, attempt)))
        except (EOFError, ConnectionError):
            return


def _attempted(pipe: Connection, phase: Phase, unit: Unit, attempt: Attempt) -> Record:
    shown_s = time.monotonic()

    def tell(part: float) -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s > _SHOW_EVERY_S:
            shown_s = time.monotonic()
            pipe.send(("part", part))

    def on_row(row: Row | None) -> None:
        pipe.send(("row", row_key(row) if row else None))

    reasons = {row: f"quarantined: killed its worker {count} times" for row, count in attempt.poison.items()}
    try:
        return work(phase, unit, tell, reasons, on_row if attempt.careful else None, not (attempt.careful and _pools(phase)))
    finally:
        scratch.remove()  # now, since Ray kills what its workers started


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    _leave()


def _leave() -> None:
    """Leave at once, whatever the main thread is at."""
    scratch.remove()
    os._exit(_STOPPED)


if __name__ == "__main__":
    main()
