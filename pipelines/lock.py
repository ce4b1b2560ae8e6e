"""One driver at a time on an output folder: a lease on OUT/lock.json, renewed by heartbeats while the run lasts.

The holder writes the lock anew every 20 s, each time only over its own last version, so that two drivers never both hold it. A
lock that was not renewed for 120 s, by the clock of the store that holds it, is free. Its holder stops before that: it repeats
a heartbeat that fails, and after 110 s, or as soon as another run holds the lock, the run ends with `LeaseLost`. What only
one run may write (a plan, dataset.json) or delete is preceded by `check`.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

from curation import processes, storage
from curation.errors import LeaseLost
from curation.output_folder import OutputFolder

_BEAT_S = 20.0
# Six missed beats: a driver that is only slow (a store that throttles, a paused machine) must not lose its folder.
_STALE_S = 6 * _BEAT_S
# A driver that died and was started again as the same pod or host is barred for no longer than this.
_RESTARTED_S = 1.5 * _BEAT_S
_FRESH_S = 1.0
# Wakes the main thread wherever it waits. Not SIGINT, which is ignored in a shell's background jobs.
_LOST = signal.SIGUSR2


@contextmanager
def locked(out: str, wait_s: float = 0.0, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold OUT/lock.json for the time of the context. ValueError if another run still holds it after `wait_s` seconds.

    Where the lock is lost, LeaseLost is raised in the main thread, if the context was entered there, and by `check`.
    say: is told whom it waits for; the default writes to stderr.
    """
    lease = _Lease(out)
    lease.take(wait_s, say or _say)
    _held[lease.uri] = lease
    before = signal.signal(_LOST, _raise_lost) if lease.in_main else None
    lease.start()
    try:
        yield
    finally:
        try:
            lease.end()
        finally:
            if lease.in_main:
                signal.signal(_LOST, before)
            del _held[lease.uri]


def check(out: str) -> None:
    """Renew the lock that this process took on an output; LeaseLost where that is no longer its own. One small write."""
    if lease := _held.get(OutputFolder(out).lock):
        lease.confirm()


class _Other(NamedTuple):
    """Another run's lock: its note, its version, and how long until it is free."""

    note: dict[str, Any]
    version: str
    free_s: float


class _Lease:
    """The lock as the run sees it that takes, renews and releases it."""

    def __init__(self, out: str) -> None:
        self.uri, self._out = OutputFolder(out).lock, out
        self.in_main = threading.current_thread() is threading.main_thread()
        self._about = {"token": uuid.uuid4().hex, **_this_process(), "since": time.time()}
        self._beats, self._version = 0, ""
        # When it was last renewed, by the clock that stands still while the machine sleeps and by the one that goes on.
        self._renewed_s, self._confirmed_s = 0.0, 0.0
        self._lost, self._trouble = "", "no heartbeat was tried"
        self._renewing, self._losing, self._ended = threading.Lock(), threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._keep, self._watch)]

    def take(self, wait_s: float, say: Callable[[str], None]) -> None:
        """Take the lock; wait where another run holds it, but not for ever for one that was seen to live."""
        began, first, said = time.monotonic(), "", ""
        while other := self._try():
            first, waited_s = first or other.version, time.monotonic() - began
            restarted = _may_have_restarted(other.note) and other.version == first
            if waited_s >= wait_s and not restarted:
                raise ValueError(f"{_holds(self._out, other)}. Wait for it (--wait), or stop it")
            if said != other.note.get("token"):
                say(f"{_holds(self._out, other)}; waiting for it")
                said = str(other.note.get("token"))
            time.sleep(min(other.free_s, _BEAT_S / 4, max(0.0, wait_s - waited_s) or other.free_s) + _FRESH_S / 20)

    def _try(self) -> _Other | None:
        """Take the lock if it is free; else return whose it is."""
        while True:
            began_s = time.monotonic()
            if version := storage.replace(self.uri, self._note(), ""):
                self._renewed(version, began_s)
                return None
            try:
                seen = storage.read_stamped(self.uri)
            except FileNotFoundError:
                continue
            note = _parsed(seen.data)
            if note.get("token") == self._about["token"]:  # taken, but the answer got lost
                self._renewed(seen.version, began_s)
                return None
            free_s = _free_in(note, seen.age_s)
            if free_s > 0:
                return _Other(note, seen.version, free_s)
            if version := storage.replace(self.uri, self._note(), seen.version):
                self._renewed(version, began_s)
                return None

    def _renewed(self, version: str, began_s: float) -> None:
        self._version, self._renewed_s, self._confirmed_s = version, began_s, _running_on()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop the heartbeats and remove the lock, if it is still ours; where that fails it becomes free by itself."""
        with self._losing:
            self._ended.set()
        for thread in self._threads:
            thread.join(_BEAT_S / 4)
        with suppress(OSError):
            if not self.is_lost and self._our_version():
                storage.delete(self.uri)

    def confirm(self) -> None:
        """Renew the lock unless that was just done. LeaseLost where it cannot be, because it is another's or for too long."""
        if self.is_lost or _running_on() - self._confirmed_s > _FRESH_S:
            try:
                self._renew()
            except OSError as error:
                self._trouble = str(error)
                if self._is_over():
                    raise self._give_up(self._silence()) from error

    def lost(self) -> LeaseLost:
        return LeaseLost(f"{self._out}: {self._lost}, so this run stops and writes nothing more; run it again to go on")

    def _give_up(self, why: str) -> LeaseLost:
        """Note why the lock is lost, wake the main thread unless it is the one that knows, and let the other threads end."""
        with self._losing:
            self._lost = self._lost or why
            main = threading.main_thread()
            if self.in_main and threading.current_thread() is not main and not self._ended.is_set():
                signal.pthread_kill(main.ident or 0, _LOST)
            self._ended.set()
        return self.lost()

    @property
    def is_lost(self) -> bool:
        return bool(self._lost)

    def _renew(self) -> None:
        """Write the lock anew over our own version of it."""
        with self._renewing:
            if self.is_lost:
                raise self.lost()
            began_s, version = time.monotonic(), self._version
            while True:
                self._beats += 1
                if new := storage.replace(self.uri, self._note(), version):
                    self._renewed(new, began_s)
                    return
                if (ours := self._our_version()) in ("", version):
                    raise self._give_up(self._whose())
                version = ours  # an earlier heartbeat arrived, but its answer got lost

    def _our_version(self) -> str:
        """The version of the lock that lies there if it is ours, else an empty text."""
        with suppress(FileNotFoundError):
            seen = storage.read_stamped(self.uri)
            if _parsed(seen.data).get("token") == self._about["token"]:
                return seen.version
        return ""

    def _whose(self) -> str:
        with suppress(OSError):
            return f"{_who(_parsed(storage.read(self.uri)))} has taken it over"
        return f"{self.uri} was removed"

    def _good_until_s(self) -> float:
        """When it must be given up: a little before another run may take it."""
        return self._renewed_s + _STALE_S - _BEAT_S / 2

    def _is_over(self) -> bool:
        return time.monotonic() >= self._good_until_s()

    def _silence(self) -> str:
        since_s = time.monotonic() - self._renewed_s
        return f"no heartbeat of its lock has reached the store for {since_s:.0f} s (last {self._trouble})"

    def _keep(self) -> None:
        """The heartbeats: each a beat after the one before, sooner after one that failed."""
        pause_s = _BEAT_S
        while not self._ended.wait(pause_s):
            try:
                self._renew()
                pause_s = _BEAT_S
            except OSError as error:
                self._trouble, pause_s = str(error), _BEAT_S / 8
            except LeaseLost:
                return

    def _watch(self) -> None:
        """End the run where heartbeats have failed for too long, also if one of them still waits for its answer."""
        while not self._ended.wait(max(_FRESH_S / 20, self._good_until_s() - time.monotonic())):
            if self._is_over():
                self._give_up(self._silence())

    def _note(self) -> bytes:
        return json.dumps({**self._about, "beats": self._beats, "beat": time.time()}).encode()


_held: dict[str, _Lease] = {}


def _raise_lost(_: int, __: FrameType | None) -> None:
    """The handler of the signal that a lease sends to the main thread."""
    for lease in list(_held.values()):
        if lease.is_lost:
            raise lease.lost()


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "space": processes.space(), "started": processes.started(pid)}


def _free_in(note: dict[str, Any], age_s: float) -> float:
    """How many seconds after its last heartbeat, `age_s` ago, a lock is free; at once where its holder is known to be dead."""
    if _is_dead(note):
        return 0.0
    return (_RESTARTED_S if _may_have_restarted(note) else _STALE_S) - age_s


def _is_dead(note: dict[str, Any]) -> bool:
    """Whether the holder is seen to be gone: only in its own process space can its number be looked up."""
    pid, ours = int(note.get("pid") or 0), _this_process()
    if note.get("host") != ours["host"] or not pid:
        return False
    if "space" not in note:  # a lock of an older release, or one written by hand
        return pid == ours["pid"] or not processes.started(pid)
    return note["space"] == ours["space"] and processes.started(pid) != note.get("started")


def _may_have_restarted(note: dict[str, Any]) -> bool:
    """Whether the holder may be an earlier life of this machine or container: the same name, but another process space."""
    return note.get("host") == socket.gethostname() and note.get("space", processes.space()) != processes.space()


def _who(note: dict[str, Any]) -> str:
    return f"another run (process {note.get('pid', 'unknown')} on {note.get('host', 'unknown')})"


def _holds(out: str, other: _Other) -> str:
    since = other.note.get("since") or other.note.get("beat")
    when = f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(float(since)))} UTC" if since else ""
    return f"{out}: {_who(other.note)} holds it{when}; free in {max(1, round(other.free_s))} s if that run is dead"


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        note = json.loads(data)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _running_on() -> float:
    """Seconds by a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _say(words: str) -> None:
    sys.stderr.write(f"gamecraft: {words}\n")
