"""The supervisor that watches a worker process: a job survives a clip that kills its worker.

No `except` catches a segmentation fault. So units run in a child process, under both runners, and the parent sees how the child
ended. A crash (an exit code, or a signal such as SIGSEGV) counts against the row that the child was working on. The unit is
then tried row by row, and a clip on which two workers crashed is rejected as quarantined. A kill from outside (SIGKILL or
SIGTERM: by an operator, by a kernel that lacks memory, with a node that is taken away) never counts, since it says nothing
about the footage. Neither is stored in the output, so a run that is itself killed leaves no trace of them.
"""

import os
import tempfile
import threading
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipelines.ledger import Record
from pipelines.phases import Phase
from pipelines.units import Unit
from pipelines.worker import WorkOrder, pools_rows
from pipelines.worker_process import OnProgress, Origin, WorkerDeath, WorkerProcess

MAX_CRASHES = 2
"""A clip is quarantined once this many workers have crashed on it."""

# A unit whose worker is killed from outside this often in one run is left to the next run.
_MAX_KILLS = 5
# If workers of other units crash on the same machine within these seconds, the machine may be the cause.
_SAME_TIME_S = 2.0
_KEEP_NOTES_S = 60.0
_UNKNOWN_ROW = ""  # stands in for the row of a crash in a pass where rows went in together


class Interrupted(Exception):
    """The supervisor was asked to give up its unit."""


# Held while a unit is tried again. So units that crash, or that need more memory together than there is, are tried one by one.
_one_retry_at_a_time = threading.Lock()


class Supervisor:
    """Does units in a worker process, and starts another worker when one dies.

    origin, gpu: as `WorkerProcess` has them.
    """

    def __init__(self, origin: Origin | None = None, gpu: str | None = None) -> None:
        self._origin, self._gpu = origin, gpu
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
            elif row_by_row and pools_rows(phase) and not result.failure:
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
            self._worker = self._worker or WorkerProcess(self._origin, self._gpu)
            return self._worker


def _failed(phase: Phase, unit: Unit, reason: str, deaths: list[WorkerDeath]) -> Record:
    return Record(phase.name, unit.name, deaths=_causes(deaths), failure=f"{unit.uri or unit.name}: {reason}")


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
