"""Which unit was tried, and on which clip it died: what lets a job outlive a clip that kills its worker.

Ray retries a task whose worker dies for ever, and no `except` sees a segmentation fault. So every attempt leaves a note under
OUT/attempts before it starts and takes it away when it ends, well or not. A note that is still there means that the worker
died. The next attempt then goes clip by clip and writes each clip into its note; a clip that was last noted in MAX_KILLS dead
attempts is rejected as quarantined, and the rest goes on.
"""

import json
import os
import socket
import uuid
from collections import Counter
from types import TracebackType

from curation import storage
from curation.schema import Row

MAX_KILLS = 2

_open_notes: set[str] = set()


class Poisoned(RuntimeError):
    """A unit that keeps killing its worker outside of any clip: reading or committing it does."""


class Attempt:
    """One attempt at a unit, as a context; `admit` is the per-row check that `operators.op.Step` takes."""

    def __init__(self, out: str, phase: str, unit: str) -> None:
        self._prefix = storage.join(out, "attempts", phase)
        self._note = storage.join(self._prefix, f"{unit}.{uuid.uuid4().hex[:8]}.json")
        self._deaths = [] if not _ever(self._prefix) else self._died_on(unit)
        self._kills = Counter(key for key in self._deaths if key)

    def _died_on(self, unit: str) -> list[str | None]:
        """For each dead attempt, the clip it was on (None before the first clip)."""
        notes = [name for name in storage.names(self._prefix) if name.startswith(f"{unit}.")]
        return [json.loads(storage.read(storage.join(self._prefix, name)))["row"] for name in notes]

    @property
    def careful(self) -> bool:
        """Whether to go clip by clip: an earlier attempt died."""
        return bool(self._deaths)

    def __enter__(self) -> "Attempt":
        outside = sum(key is None for key in self._deaths)
        if outside > MAX_KILLS:
            raise Poisoned(f"killed its worker {outside} times outside of any clip; see {self._prefix}")
        _open_notes.add(self._note)
        self._write(None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        storage.delete(self._note)
        _open_notes.discard(self._note)

    def admit(self, row: Row) -> str | None:
        """Note that this row is about to be worked on; a reason to reject it where it has killed too often."""
        key = str(row.get("clip_id") or row["video_id"])
        if self._kills[key] >= MAX_KILLS:
            return f"quarantined: killed its worker {self._kills[key]} times"
        self._write(key)
        return None

    def _write(self, row: str | None) -> None:
        note = {"row": row, "host": socket.gethostname(), "pid": os.getpid()}
        storage.put(self._note, json.dumps(note).encode())


def _ever(prefix: str) -> bool:
    """Saves a listing a unit in the usual case, on local disks, that nothing has died yet."""
    return storage.is_s3(prefix) or os.path.isdir(prefix)


def withdraw() -> None:
    """Take this process's notes away: it is about to be stopped by its owner, not by what it works on."""
    for note in list(_open_notes):
        storage.delete(note)
        _open_notes.discard(note)
