"""Share one worker thread between players and replays: each takes a turn, of one block, in a circle."""

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


class Source(Protocol):
    """Something that takes turns."""

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
            try:
                await source.turn(self.work)
            except Exception as error:  # one player's trouble must not stop the others
                self.remove(source)
                source.fail(error)
            await asyncio.sleep(0)  # a source that never waits must not keep the loop from reading sockets

    def _next(self, now: float) -> tuple[Source | None, float]:
        """Return the next source in the circle that is ready; or None, and the seconds until one is."""
        shortest = math.inf
        for _ in range(len(self._sources)):
            source = self._sources[0]
            self._sources.rotate(-1)
            wait_s = source.wait_s(now)
            if wait_s <= 0:
                return source, 0.0
            shortest = min(shortest, wait_s)
        return None, shortest

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
