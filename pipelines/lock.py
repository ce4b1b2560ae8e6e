"""One driver at a time on an output folder; a lock whose holder is gone does not bar the next."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curation import storage

_BEAT_S = 20.0
# Six missed beats: a driver that is only slow (a long listing, a paused laptop lid) must not lose its folder.
_STALE_S = 6 * _BEAT_S


@contextmanager
def locked(out: str) -> Iterator[None]:
    """Hold OUT/lock.json for the time of the context. ValueError if another live driver holds it."""
    uri, token = storage.join(out, "lock.json"), uuid.uuid4().hex
    _take(uri, token)
    stop = threading.Event()
    beat = threading.Thread(target=_keep, args=(uri, token, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _read(uri).get("token") == token:
            storage.delete(uri)


def _take(uri: str, token: str) -> None:
    if storage.put(uri, _note(token), if_absent=True):
        return
    holder = _read(uri)
    if _lives(holder):
        who = f"process {holder.get('pid')} on {holder.get('host')}"
        raise ValueError(f"{uri}: another run ({who}) is writing there. Wait for it, or stop it and try again")
    storage.put(uri, _note(token))
    time.sleep(0.2)  # another driver may have found the same stale lock: the last to write it holds it
    if _read(uri).get("token") != token:
        raise ValueError(f"{uri}: another run has just started there. Wait for it, or stop it and try again")


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the holder still beats; on its own machine a process that is gone is known to be."""
    if holder.get("host") == socket.gethostname() and not storage.process_lives(int(holder.get("pid", 0))):
        return False
    return time.time() - float(holder.get("beat", 0)) < _STALE_S


def _keep(uri: str, token: str, stop: threading.Event) -> None:
    while not stop.wait(_BEAT_S):
        storage.put(uri, _note(token))


def _note(token: str) -> bytes:
    note = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "beat": time.time()}
    return json.dumps(note).encode()


def _read(uri: str) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads(storage.read(uri))
    except (FileNotFoundError, ValueError):
        return {}
    return note
