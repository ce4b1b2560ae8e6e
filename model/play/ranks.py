"""Sessions that several ranks share: rank 0 is asked, and tells the others, which do the same.

What is told travels on the processors' side of the process group. All calls of an engine and of its sessions must come from one
thread at a time, as they do in play.
"""

import atexit
import contextlib
from collections import deque
from typing import Any, Protocol

import torch.distributed as dist

from curation.errors import InputError

_STOP = "stop"


class Followed(Protocol):
    """An engine that follows: it starts sessions, whose methods are called by name."""

    def start(self, start: Any) -> tuple[Any, Any]: ...


class RankCaller:
    """Rank 0's side."""

    def __init__(self) -> None:
        self._sessions, self._ended, self._is_running = 0, deque[int](), True
        atexit.register(self.stop)

    def new_session(self) -> int:
        """Return the number of a new session."""
        self._sessions += 1
        return self._sessions

    def tell(self, session: int, method: str, *arguments: Any) -> None:
        """Have the other ranks call a method of a session; `start` starts it."""
        while self._ended:
            self._send(self._ended.popleft(), "end")
        self._send(session, method, *arguments)

    def end(self, session: int) -> None:
        """Note that a session is over. It may be called from any thread: the others are told with the next call."""
        self._ended.append(session)

    def stop(self) -> None:
        """Let the other ranks stop; also at the end of the process."""
        if self._is_running and dist.is_initialized():
            self._send(0, _STOP)
        self._is_running = False

    @staticmethod
    def _send(*message: Any) -> None:
        dist.broadcast_object_list([message], src=0)


def follow(engine: Followed) -> None:
    """Do what rank 0 tells until it stops. An InputError is rank 0's to report, where the same call raises it."""
    sessions: dict[int, Any] = {}
    while True:
        received: list[Any] = [None]
        dist.broadcast_object_list(received, src=0)
        number, method, *arguments = received[0]
        if method == _STOP:
            return
        with contextlib.suppress(InputError):
            if method == "start":
                sessions[number], _ = engine.start(*arguments)
            elif method == "end":
                sessions.pop(number, None)
            else:
                getattr(sessions[number], method)(*arguments)
