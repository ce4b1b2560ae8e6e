"""One WebSocket: read messages no faster than the limits allow, and send without ever holding more than one block."""

import asyncio
import contextlib
import logging
import time
from collections import deque

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from model.play.limits import Limits, TokenBucket
from model.play.player import Player
from model.play.protocol import ClientMessage, Error, ErrorId, Message, ProtocolError, parse

log = logging.getLogger(__name__)

LEFT = 1000  # the close code of a client that leaves on purpose
POLICY = 1008
_MAX_TEXTS = 64  # messages that wait for a client; older ones are out of date
_LARGE = 64 * 1024  # a message whose parsing would hold up the event loop
_RATE_NOTICE_S = 5.0


class Connection:
    """A client. Messages wait in order; of blocks only the newest waits."""

    def __init__(self, socket: WebSocket, limits: Limits, exact: bool) -> None:
        self.exact = exact
        self.player: Player | None = None
        self.dropped = 0
        self.close_code = LEFT + 6  # 1006: no close frame came
        self._socket, self._limits = socket, limits
        self._texts: deque[Message] = deque(maxlen=_MAX_TEXTS)
        self._block: bytes | None = None
        self._something, self._closing = asyncio.Event(), False
        self._bucket = TokenBucket(limits.messages_per_s, limits.message_burst, time.monotonic())
        self._rate_notice_s = 0.0

    def send(self, message: Message) -> None:
        if self._closing:  # the reason was the last word: what is still read is not answered
            return
        self._texts.append(message)
        self._something.set()

    def send_block(self, message: bytes) -> bool:
        is_late, self._block = self._block is not None, message
        self.dropped += is_late
        self._something.set()
        return is_late

    def drop_block(self) -> None:
        self._block = None

    def refuse(self, id_: ErrorId, detail: str) -> None:
        self.send(Error(id=id_, detail=detail))

    def close(self, id_: ErrorId, detail: str) -> None:
        """Say why, then close."""
        self.refuse(id_, detail)
        self._closing = True

    async def send_all(self) -> None:
        """Send what waits, until the connection is to be closed."""
        while True:
            await self._something.wait()
            self._something.clear()
            while self._texts:
                await self._socket.send_text(self._texts.popleft().model_dump_json())
            if self._closing:
                await self._socket.close(POLICY)
                return
            if self._block is not None:
                block, self._block = self._block, None
                await self._socket.send_bytes(block)

    async def receive(self) -> ClientMessage | None:
        """Return the next message, or None for one that was refused. WebSocketDisconnect at the end."""
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            self.close_code = event.get("code") or self.close_code
            raise WebSocketDisconnect(self.close_code)
        text = event.get("text")
        size = len(text if text is not None else event.get("bytes") or b"")
        delay_s = self._bucket.take(max(1.0, size / self._limits.message_bytes), time.monotonic())
        if delay_s:
            self._notice_rate()
            await asyncio.sleep(delay_s)  # meanwhile the client's messages wait in its own buffers
        try:
            if text is None:
                raise ProtocolError("message", "binary messages are not part of the protocol")
            return parse(text) if size < _LARGE else await asyncio.to_thread(parse, text)
        except ProtocolError as error:
            self.send(error.message)
            return None

    def _notice_rate(self) -> None:
        now = time.monotonic()
        if now - self._rate_notice_s > _RATE_NOTICE_S:
            self._rate_notice_s = now
            self.refuse("rate", f"more than {self._limits.messages_per_s:g} messages a second; they are read late")

    async def end(self) -> None:
        """Close the socket if it is still open, without waiting for a client that does not answer."""
        with contextlib.suppress(Exception):
            if self._socket.application_state is not WebSocketState.DISCONNECTED:
                await asyncio.wait_for(self._socket.close(LEFT), 1.0)
