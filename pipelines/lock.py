"""One driver at a time on an output folder: a lease on OUT/lock.json, renewed by heartbeats while the run lasts.

The holder rewrites the lock every 20 s, each time only over its own last version, so that two drivers never both hold it. A
lock that was not renewed for 120 s, by the clock of the store that has it, is free. Its holder stops before that: it retries a
heartbeat that fails, and the run ends with `LeaseLost` after 110 s, or as soon as another run holds the lock. Call `renew_lock`
before every write that only one run may make (a plan, dataset.json) and before every deletion.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

from curation import processes, storage
from curation.errors import InputError, LeaseLost
from curation.output_folder import OutputFolder

log = logging.getLogger(__name__)

_HEARTBEAT_S = 20.0
# Six missed heartbeats: a driver that is only slow (a store that throttles, a paused machine) must not lose its folder.
_EXPIRY_S = 6 * _HEARTBEAT_S
# A driver that died and was restarted as the same pod or host waits no longer than this.
_RESTARTED_EXPIRY_S = 1.5 * _HEARTBEAT_S
_FRESH_S = 1.0  # a lock that was renewed this recently is not renewed again
# Interrupts the main thread wherever it waits. Not SIGINT, which is ignored in a shell's background jobs.
_LOST_SIGNAL = signal.SIGUSR2


@contextmanager
def hold_lock(out: str, wait_s: float = 0.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold OUT/lock.json for the time of the context. InputError if another run still holds it after `wait_s` seconds.

    If the lock is lost, `renew_lock` raises LeaseLost, and so does the main thread if it entered the context.
    on_wait: gets one line about the run that is waited for. The default logs a warning.
    """
    lease = _Lease(out)
    lease.take(wait_s, on_wait or _log_wait)
    _held[lease.uri] = lease
    previous_handler = signal.signal(_LOST_SIGNAL, _raise_lost) if lease.in_main else None
    lease.start()
    try:
        yield
    finally:
        try:
            lease.end()
        finally:
            if lease.in_main:
                signal.signal(_LOST_SIGNAL, previous_handler)
            del _held[lease.uri]


def renew_lock(out: str) -> None:
    """Renew the lock that this process took on an output. LeaseLost if it no longer holds it. Costs one small write."""
    if lease := _held.get(OutputFolder(out).lock):
        lease.confirm()


def is_held_here(out: str) -> bool:
    """Whether this process holds the lock of an output."""
    return OutputFolder(out).lock in _held


def is_held(out: str) -> bool:
    """Whether a run that may be alive holds the lock of an output. Costs one small read."""
    try:
        current = storage.read_stamped(OutputFolder(out).lock)
    except FileNotFoundError:
        return False
    return _free_in_s(_parse_note(current.data), current.age_s) > 0


class _OtherLock(NamedTuple):
    """The lock of another run: its content, its version, and how long until it is free."""

    note: dict[str, Any]
    version: str
    free_in_s: float


class _Lease:
    """The lock from the side of the run that takes, renews and releases it."""

    def __init__(self, out: str) -> None:
        self.uri, self._out = OutputFolder(out).lock, out
        self.in_main = threading.current_thread() is threading.main_thread()
        self._identity = {"token": uuid.uuid4().hex, **_this_process(), "since": time.time()}
        self._heartbeats, self._version = 0, ""
        # The last renewal by two clocks: one stops while the machine sleeps, the other does not.
        self._renewed_s, self._confirmed_s = 0.0, 0.0
        self._loss, self._last_error = "", "no heartbeat was tried"
        self._renewing, self._losing, self._ended = threading.Lock(), threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send_heartbeats, self._watch)]

    def take(self, wait_s: float, on_wait: Callable[[str], None]) -> None:
        """Take the lock. If another run holds it, wait up to `wait_s`, and a little longer where that run may be dead."""
        began_s, first_version, announced = time.monotonic(), "", ""
        while other := self._try_take():
            first_version, waited_s = first_version or other.version, time.monotonic() - began_s
            restarted = _may_have_restarted(other.note) and other.version == first_version
            if waited_s >= wait_s and not restarted:
                raise InputError(f"{_describe_lock(self._out, other)}. Wait for it (--wait), or stop it")
            if announced != other.note.get("token"):
                on_wait(f"{_describe_lock(self._out, other)}; waiting for it")
                announced = str(other.note.get("token"))
            pause_s = min(other.free_in_s, _HEARTBEAT_S / 4, max(0.0, wait_s - waited_s) or other.free_in_s)
            time.sleep(pause_s + _FRESH_S / 20)

    def _try_take(self) -> _OtherLock | None:
        """Take the lock if it is free. Return None then, else the lock of the other run."""
        while True:
            began_s = time.monotonic()
            if version := storage.replace(self.uri, self._note(), ""):
                self._note_renewal(version, began_s)
                return None
            try:
                current = storage.read_stamped(self.uri)
            except FileNotFoundError:
                continue
            note = _parse_note(current.data)
            if note.get("token") == self._identity["token"]:  # the write succeeded, but its answer got lost
                self._note_renewal(current.version, began_s)
                return None
            free_in_s = _free_in_s(note, current.age_s)
            if free_in_s > 0:
                return _OtherLock(note, current.version, free_in_s)
            if version := storage.replace(self.uri, self._note(), current.version):
                self._note_renewal(version, began_s)
                return None

    def _note_renewal(self, version: str, began_s: float) -> None:
        self._version, self._renewed_s, self._confirmed_s = version, began_s, _boot_time_s()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop the heartbeats and remove the lock if it is still ours. If that fails, the lock expires by itself."""
        with self._losing:
            self._ended.set()
        for thread in self._threads:
            thread.join(_HEARTBEAT_S / 4)
        with suppress(OSError):
            if not self.is_lost and self._own_version():
                storage.delete(self.uri)

    def confirm(self) -> None:
        """Renew the lock, unless that was just done. LeaseLost if another run has it, or if renewals failed for too long."""
        if self.is_lost or _boot_time_s() - self._confirmed_s > _FRESH_S:
            try:
                self._renew()
            except OSError as error:
                self._last_error = str(error)
                if self._is_overdue():
                    raise self._give_up(self._describe_silence()) from error

    def loss_error(self) -> LeaseLost:
        return LeaseLost(f"{self._out}: {self._loss}, so this run stops and writes nothing more; run it again to resume")

    def _give_up(self, reason: str) -> LeaseLost:
        """Store why the lock is lost, interrupt the main thread unless this is the main thread, and end the other threads."""
        with self._losing:
            self._loss = self._loss or reason
            main = threading.main_thread()
            if self.in_main and threading.current_thread() is not main and not self._ended.is_set():
                signal.pthread_kill(main.ident or 0, _LOST_SIGNAL)
            self._ended.set()
        return self.loss_error()

    @property
    def is_lost(self) -> bool:
        return bool(self._loss)

    def _renew(self) -> None:
        """Rewrite the lock over our own version of it."""
        with self._renewing:
            if self.is_lost:
                raise self.loss_error()
            began_s, version = time.monotonic(), self._version
            while True:
                self._heartbeats += 1
                if new := storage.replace(self.uri, self._note(), version):
                    self._note_renewal(new, began_s)
                    return
                if (own := self._own_version()) in ("", version):
                    raise self._give_up(self._describe_takeover())
                version = own  # an earlier heartbeat arrived, but its answer got lost

    def _own_version(self) -> str:
        """Return the version of the stored lock if it is ours, else an empty string."""
        with suppress(FileNotFoundError):
            current = storage.read_stamped(self.uri)
            if _parse_note(current.data).get("token") == self._identity["token"]:
                return current.version
        return ""

    def _describe_takeover(self) -> str:
        with suppress(OSError):
            return f"{_describe_run(_parse_note(storage.read(self.uri)))} has taken it over"
        return f"{self.uri} was removed"

    def _deadline_s(self) -> float:
        """When this run must give up the lock: a little before another run may take it."""
        return self._renewed_s + _EXPIRY_S - _HEARTBEAT_S / 2

    def _is_overdue(self) -> bool:
        return time.monotonic() >= self._deadline_s()

    def _describe_silence(self) -> str:
        silent_s = time.monotonic() - self._renewed_s
        return f"no heartbeat of its lock has reached the store for {silent_s:.0f} s (last {self._last_error})"

    def _send_heartbeats(self) -> None:
        """Renew the lock once in every heartbeat interval, and sooner after a heartbeat that failed. Runs in a thread."""
        pause_s = _HEARTBEAT_S
        while not self._ended.wait(pause_s):
            try:
                self._renew()
                pause_s = _HEARTBEAT_S
            except OSError as error:
                self._last_error, pause_s = str(error), _HEARTBEAT_S / 8
            except LeaseLost:
                return

    def _watch(self) -> None:
        """End the run if heartbeats have failed for too long, even while one of them still waits for its answer."""
        while not self._ended.wait(max(_FRESH_S / 20, self._deadline_s() - time.monotonic())):
            if self._is_overdue():
                self._give_up(self._describe_silence())

    def _note(self) -> bytes:
        """Return the content of the lock file."""
        return json.dumps({**self._identity, "beats": self._heartbeats, "beat": time.time()}).encode()


_held: dict[str, _Lease] = {}


def _raise_lost(_: int, __: FrameType | None) -> None:
    """Handle the signal that a lease sends to the main thread."""
    for lease in list(_held.values()):
        if lease.is_lost:
            raise lease.loss_error()


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "space": processes.pid_namespace(),
        "started": processes.start_time(pid),
    }


def _free_in_s(note: dict[str, Any], age_s: float) -> float:
    """Return seconds until a lock is free whose last heartbeat was `age_s` ago. 0 where its holder is known to be dead."""
    if _is_dead(note):
        return 0.0
    return (_RESTARTED_EXPIRY_S if _may_have_restarted(note) else _EXPIRY_S) - age_s


def _is_dead(note: dict[str, Any]) -> bool:
    """Whether the holder is known to be gone. A process number can be looked up only in its own PID namespace."""
    pid, ours = int(note.get("pid") or 0), _this_process()
    if note.get("host") != ours["host"] or not pid:
        return False
    if "space" not in note:  # a lock of an older release, or one written by hand
        return pid == ours["pid"] or not processes.start_time(pid)
    return note["space"] == ours["space"] and processes.start_time(pid) != note.get("started")


def _may_have_restarted(note: dict[str, Any]) -> bool:
    """Whether the holder may be an earlier life of this machine or container: the same host, but another PID namespace."""
    ours = processes.pid_namespace()
    return note.get("host") == socket.gethostname() and note.get("space", ours) != ours


def _describe_run(note: dict[str, Any]) -> str:
    return f"another run (process {note.get('pid', 'unknown')} on {note.get('host', 'unknown')})"


def _describe_lock(out: str, other: _OtherLock) -> str:
    since = other.note.get("since") or other.note.get("beat")
    when = f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(float(since)))} UTC" if since else ""
    return f"{out}: {_describe_run(other.note)} holds it{when}; free in {max(1, round(other.free_in_s))} s if that run is dead"


def _parse_note(data: bytes) -> dict[str, Any]:
    try:
        note = json.loads(data)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _boot_time_s() -> float:
    """Return seconds by a clock that also runs while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _log_wait(line: str) -> None:
    log.warning("%s", line)
