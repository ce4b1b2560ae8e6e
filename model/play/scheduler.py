"""Share one worker thread between players and replays: each takes a turn, of one block, in a circle.

Replays use the time that players leave. Where players leave none, replays get a small part of the turns.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

log = logging.getLogger(__name__)

Work = Callable[..., Awaitable[Any]]  # work(function, *arguments) runs a function in the worker thread


_BACKGROUND_EVERY = 5  # where players take all the time, each fifth turn is a replay's


class Source(Protocol):
    """Something that takes turns."""

    is_background: bool

    def wait_s(self, now: float) -> float:
        """Return the seconds until it wants a turn: 0 for at once, infinite for not before `Scheduler.wake`."""
        ...

    async def turn(self, work: Work) -> None:
        """Make one block."""
        ...

    def fail(self, error: Exception) -> None:
        """Take an error of a turn. Sources that fail are removed."""
        ...


class Scheduler:
    """Runs turns one after the other. All methods belong to the event loop; only `work` leaves it."""

    def __init__(self) -> None:
        self._sources: deque[Source] = deque()
        self._turns = 0  # since the last one of the background
        self._wake = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def add(self, source: Source) -> None:
        self._sources.append(source)
        self._wake.set()

    def remove(self, source: Source) -> None:
        if source in self._sources:
            self._sources.remove(source)

    def wake(self) -> None:
        self._wake.set()

    async def work(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    async def run(self) -> None:
        """Give turns until cancelled."""
        while True:
            self._wake.clear()
            source, wait_s = self._next(time.monotonic())
            if source is None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), None if math.isinf(wait_s) else wait_s)
                continue
            self._turns = 0 if source.is_background else self._turns + 1
            try:
                await source.turn(self.work)
            except Exception as error:  # one player's trouble must not stop the others
                self.remove(source)
                source.fail(error)
            await asyncio.sleep(0)  # a source that never waits must not keep the loop from reading sockets

    def _next(self, now: float) -> tuple[Source | None, float]:
        """Return the next source in the circle that is ready; or None, and the seconds until one is."""
        waits = [(source.wait_s(now), source) for source in self._sources]
        ready = [source for wait_s, source in waits if wait_s <= 0]
        if not ready:
            return None, min((wait_s for wait_s, _ in waits), default=math.inf)
        is_background_due = self._turns >= _BACKGROUND_EVERY - 1
        source = next((source for source in ready if source.is_background == is_background_due), ready[0])
        self._sources.remove(source)
        self._sources.append(source)  # behind all others
        return source, 0.0

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
