"""A real server of the play page in a thread, and a client that speaks its protocol."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import uvicorn
import websockets

from model.play.engine import Engine
from model.play.hub import Load
from model.play.limits import Limits
from model.play.protocol import BlockHeader, unpack
from model.play.server import create_app


class Server:
    def __init__(self, engines: Sequence[Engine] | Load, limits: Limits | None = None, **options: Any) -> None:
        load = engines if callable(engines) else lambda log: engines
        self.app = create_app(load, limits, **options)
        self.hub = self.app.state.hub
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app, log_level="error", ws_max_size=2**24, ws_per_message_deflate=False, timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        while not (self._server.started and (self.hub.engines or self.hub.failure or callable(engines))):
            time.sleep(0.005)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(engines: Sequence[Engine] | Load, limits: Limits | None = None, **options: Any) -> Iterator[Server]:
    server = Server(engines, limits, **options)
    try:
        yield server
    finally:
        server.stop()


class Client:
    """acks: acknowledge every block at once."""

    def __init__(self, socket_: Any, acks: bool = True) -> None:
        self.socket, self.acks = socket_, acks
        self.token = ""
        self.blocks: list[tuple[BlockHeader, np.ndarray]] = []
        self.arrived_s: list[float] = []
        self.messages: list[dict[str, Any]] = []
        self._seq = 0

    async def send(self, type_: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": type_, **fields}))

    async def ctl(self, *keys: str, dx: float = 0.0, dy: float = 0.0) -> int:
        self._seq += 1
        await self.send("ctl", seq=self._seq, t=1e3 * time.monotonic(), keys=keys, dx=dx, dy=dy)
        return self._seq

    async def ack(self, header: BlockHeader) -> None:
        await self.send("ack", gen=header.gen, frame=header.frame0 + header.n - 1, t_shown=0.0)

    async def receive(self, timeout_s: float = 5.0) -> Any:
        """Return the next thing: the header and frames of a block, or a message."""
        data = await asyncio.wait_for(self.socket.recv(), timeout_s)
        if isinstance(data, str):
            message = json.loads(data)
            self.messages.append(message)
            if message["type"] in ("ready", "state") and message["session"]:
                self.token = message["session"]
            return message
        header, pictures = unpack(data)
        frames = [cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for picture in pictures]
        block = header, np.stack(frames)
        self.blocks.append(block)
        self.arrived_s.append(time.monotonic())
        if self.acks:
            await self.ack(header)
        return block

    async def block(self, timeout_s: float = 5.0) -> tuple[BlockHeader, np.ndarray]:
        while True:
            received = await self.receive(timeout_s)
            if isinstance(received, tuple):
                return received

    async def message(
        self, type_: str, condition: Callable[[dict[str, Any]], bool] = lambda _: True, timeout_s: float = 5.0
    ) -> Any:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            received = await self.receive(timeout_s)
            if isinstance(received, dict) and received["type"] == type_ and condition(received):
                return received
        raise AssertionError(f"no {type_} in {timeout_s:g} s; the last messages are {self.messages[-4:]}")

    async def closed(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Read to the end; return the last error."""
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                try:
                    await self.receive(timeout_s)
                except websockets.ConnectionClosed:
                    if not self.acks:
                        raise
                    self.acks = False  # an acknowledgement could not be sent; what came before the end is still to be read
        return [message for message in self.messages if message["type"] == "error"][-1]


@contextlib.asynccontextmanager
async def connect(
    server: Server, start: dict[str, Any] | None = None, acks: bool = True, resume: str = "", query: str = "", **options: Any
) -> AsyncIterator[Client]:
    """Connect and say hello; with start also start to play, unless the session is resumed."""
    async with websockets.connect(f"ws://127.0.0.1:{server.port}/ws?v=1{query}", max_size=2**24, **options) as socket_:
        client = Client(socket_, acks)
        await client.send("hello", v=1, resume=resume)
        await client.message("ready")
        if start is not None:
            await client.send("start", **start)
        yield client
