"""Everything a server of the play page shares: engines, players, those who wait, and replays that become videos."""

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import numpy as np

from curation.errors import GamecraftError, InputError, describe
from model.control.spec import ControlState
from model.play.connection import LEFT, Connection
from model.play.engine import BlockFrames, Engine, Start
from model.play.images import decode_image
from model.play.limits import Limits
from model.play.player import Player
from model.play.protocol import (
    VERSION,
    Ack,
    Busy,
    ClientMessage,
    Control,
    Error,
    Hello,
    Pause,
    Ping,
    PromptChange,
    ProtocolError,
    Ready,
    RecordSwitch,
    Reset,
    Resume,
    Stage,
    StartWorld,
    StepOnce,
)
from model.play.record import Record, check_identity, read_record, replay
from model.play.scheduler import Scheduler, Work
from model.play.video import Mp4Writer

log = logging.getLogger(__name__)

Load = Callable[[Callable[[str], None]], Sequence[Engine]]  # load(log) returns the engines
_HOUSEKEEPING_S = 0.25
_MAX_VIDEOS = 2  # replays at a time; each holds a session of an engine


def _ignore(_: float) -> None:
    """Show no progress."""


class Replay:
    """A replay that becomes a video: it takes turns as a player does."""

    is_background = True

    def __init__(self, record: Record, engine: Engine, progress: Callable[[float], None] = _ignore) -> None:
        self.video: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._blocks, self._count, self._done = replay(record, engine), max(1, len(record.blocks)), 0
        self._writer, self._progress = Mp4Writer(engine.info.fps), progress

    def wait_s(self, now: float) -> float:  # noqa: ARG002 -- a source of the scheduler
        return math.inf if self.video.done() else 0.0

    async def turn(self, work: Work) -> None:
        video = await work(_add_next, self._blocks, self._writer)
        self._done += 1
        self._progress(100.0 * min(1.0, self._done / self._count))
        if video is not None and not self.video.done():
            self.video.set_result(video)

    def fail(self, error: Exception) -> None:
        if not self.video.done():
            self.video.set_exception(error)


def _add_next(blocks: Iterator[BlockFrames], writer: Mp4Writer) -> bytes | None:
    block = next(blocks, None)
    if block is None:
        return writer.finish()
    writer.add(block.frames)
    return None


class Hub:
    """The state of a server. All of it belongs to the event loop."""

    def __init__(
        self,
        load: Load,
        limits: Limits,
        attract: str = "",
        on_failure: Callable[[], None] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.limits, self.failure = limits, None  # type: tuple[Limits, Exception | None]
        self.engines: tuple[Engine, ...] = ()
        self.attract: bytes | None = None
        self.films_attract = bool(attract)
        self.players: dict[str, Player] = {}
        self.connections: set[Connection] = set()
        self.scheduler = Scheduler()
        self._load, self._attract_path, self._on_failure, self._log = load, attract, on_failure, log
        self._waiting: deque[tuple[Connection, tuple[Engine, ...], Start]] = deque()
        self._greeted: set[Connection] = set()
        self._stage = Stage(id="load")
        self._videos = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Hub":
        self._tasks = [asyncio.create_task(run()) for run in (self.scheduler.run, self._housekeep, self._get_ready)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.scheduler.close()

    # Loading

    async def _get_ready(self) -> None:
        loop = asyncio.get_running_loop()

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(self._tell_stage, Stage(id="load", detail=text))

        try:
            engines = tuple(await self.scheduler.work(self._load, tell))
            check_comparable(engines)
            record = read_record(self._attract_path) if self._attract_path else None
            if record:
                check_identity(record, engines[0])
            for number, engine in enumerate(engines):
                blocks, count = warm_up(engine), engine.info.warm_up_blocks
                for block in range(count):
                    detail = engine.info.name if count == 1 else f"{engine.info.name}, block {block + 1} of {count}"
                    self._tell_stage(Stage(id="warm-up", pct=100.0 * (number + block / count) / len(engines), detail=detail))
                    await self.scheduler.work(next, blocks, None)
                del blocks  # and its session, whose cache may be large
        except Exception as error:
            self.failure = error
            if not isinstance(error, GamecraftError):
                log.error("the engine did not load: %s", describe(error), exc_info=error)
            for connection in self.connections:
                connection.close("load", describe(error))
            if self._on_failure:
                self._on_failure()
            return
        self.engines, self._stage = engines, Stage(id="done", pct=100.0)
        if not record:
            self.attract = engines[0].info.attract or None
        for connection in self._greeted:
            self._send_ready(connection)
        if record:
            await self._film_attract(record)

    def _tell_stage(self, stage: Stage) -> None:
        self._stage = stage
        if self._log and stage.detail:
            self._log(f"{stage.id}: {stage.detail}")
        for connection in self._greeted:
            connection.send(stage)

    async def _film_attract(self, record: Record) -> None:
        try:
            self.attract = await self.film(record, self.engines[0])
        except InputError as error:
            log.warning("no attract loop: %s", error)
        finally:
            self.films_attract = False

    async def film(self, record: Record, engine: Engine, progress: Callable[[float], None] = _ignore) -> bytes:
        """Return the video of a replay. InputError where it is refused, or too many are made."""
        check_identity(record, engine)
        if self._videos >= _MAX_VIDEOS:
            raise InputError("too many videos are being made; try again in a minute")
        job = Replay(record, engine, progress)
        self._videos += 1
        self.scheduler.add(job)
        try:
            return await job.video
        finally:
            self._videos -= 1
            self.scheduler.remove(job)

    # Connections

    async def serve(self, connection: Connection) -> None:
        """Talk with a client until one side closes."""
        self.connections.add(connection)
        sender = asyncio.create_task(connection.send_all())
        reader = asyncio.create_task(self._read(connection))
        try:
            await asyncio.wait({sender, reader}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sender, reader):
                task.cancel()
            await asyncio.gather(sender, reader, return_exceptions=True)
            self.connections.discard(connection)
            self._greeted.discard(connection)
            self._forget_waiting(connection)
            self._detach(connection)
            await connection.end()

    async def _read(self, connection: Connection) -> None:
        try:
            first = await asyncio.wait_for(connection.receive(), self.limits.hello_s)
        except asyncio.TimeoutError:
            first = None
        if not isinstance(first, Hello):
            connection.close("hello", "the first message must be hello")
            await asyncio.sleep(self.limits.hello_s)
            return
        if not self._greet(connection, first):
            await asyncio.sleep(self.limits.hello_s)
            return
        while True:
            message = await connection.receive()
            if message is None:
                continue
            try:
                await self._handle(connection, message)
            except ProtocolError as error:
                connection.send(error.message)
            self.scheduler.wake()

    def _greet(self, connection: Connection, hello: Hello) -> bool:
        if hello.v != VERSION:
            connection.close("version", f"this server speaks version {VERSION}, not {hello.v}; load the page again")
            return False
        self._greeted.add(connection)
        if player := self.players.get(hello.resume) if hello.resume else None:
            if isinstance(player.channel, Connection):
                player.channel.player = None
                player.channel.close("replaced", "the session continues in another connection")
            connection.player = player
            player.attach(connection)
        elif hello.resume:
            connection.refuse("resume", "the session has ended; start again")
        if self.engines:
            self._send_ready(connection)
        else:
            connection.send(self._stage)
        self.scheduler.wake()
        return True

    def _send_ready(self, connection: Connection) -> None:
        player = connection.player
        connection.send(
            Ready(
                session=player.token if player else "",
                resumed=player is not None,
                gen=player.gen if player else 0,
                spec=spec_hash(self.engines),
                engines=tuple(describe_engine(engine) for engine in self.engines),
                starts=tuple(image.name for image in self.engines[0].info.start_images),
                limits=asdict(self.limits),
            )
        )
        if player:
            connection.send(player.state(connection.dropped))

    async def _handle(self, connection: Connection, message: ClientMessage) -> None:
        if isinstance(message, StartWorld):
            await self._start(connection, message)
            return
        player = connection.player
        if isinstance(message, Ping) and player is None:
            return
        if isinstance(message, Hello) or player is None:
            raise ProtocolError("order", f"{message.type} cannot come here: hello comes first and once, then start")
        now = time.monotonic()
        if isinstance(message, Ack):
            was_paused = player.paused
            player.acknowledge(message.gen, message.frame, None if message.early is None else message.early / 1e3)
            if was_paused != player.paused:
                connection.send(player.state(connection.dropped))
            return
        if isinstance(message, Control):
            if player.inputs.receive(message.seq, message.keys, message.dx, message.dy, now):
                player.active_s = now
            return
        self._command(player, message)
        if not isinstance(message, Ping):
            player.active_s = now
        connection.send(player.state(connection.dropped, message.t if isinstance(message, Ping) else None))

    def _command(self, player: Player, message: ClientMessage) -> None:
        if isinstance(message, PromptChange):
            try:
                player.add_prompt(message)
            except InputError as error:
                raise ProtocolError("prompt", str(error)) from None
        elif isinstance(message, Pause):
            player.pause()
        elif isinstance(message, Resume):
            player.resume()
        elif isinstance(message, StepOnce):
            player.step_once()
        elif isinstance(message, Reset):
            player.reset(message.seed)
        elif isinstance(message, RecordSwitch):
            player.switch_record(message.on)

    # Sessions

    async def _start(self, connection: Connection, message: StartWorld) -> None:
        if not self.engines:
            raise ProtocolError("order", "the engine is still loading")
        if message.spec and message.spec != spec_hash(self.engines):
            raise ProtocolError("spec", "the server has other engines now; load the page again")
        engines = self._named_engines(message.engines)
        start = Start(await self._picture(engines[0], message), message.prompt, message.seed)
        self._forget_waiting(connection)
        if connection.player:
            connection.player.restart(engines, start)
            connection.player.active_s = time.monotonic()
            connection.send(connection.player.state(connection.dropped))
        elif len(self.players) < self.limits.sessions and not self._waiting:
            self._admit(connection, engines, start)
        elif len(self._waiting) >= self.limits.waiting:
            connection.close("full", "all sessions are taken, and so are the places in the queue; try again later")
        else:
            self._waiting.append((connection, engines, start))
            self._tell_queue()

    def _named_engines(self, names: Sequence[str]) -> tuple[Engine, ...]:
        if not names:
            return self.engines[:1]
        by_name = {engine.info.name: engine for engine in self.engines}
        if unknown := [name for name in names if name not in by_name]:
            raise ProtocolError("engines", f"no engine {unknown[0]!r}; there are {', '.join(by_name)}")
        return tuple(by_name[name] for name in dict.fromkeys(names))

    async def _picture(self, engine: Engine, message: StartWorld) -> np.ndarray:
        if message.image:
            return await asyncio.to_thread(decode_image, message.image, self.limits)
        images = engine.info.start_images
        for image in images:
            if message.preset in ("", image.name):
                return image.picture
        raise ProtocolError(
            "preset", f"no start image {message.preset!r}; there are {', '.join(image.name for image in images)}"
        )

    def _admit(self, connection: Connection, engines: tuple[Engine, ...], start: Start) -> None:
        player = Player(engines, start, self.limits, self._end)
        self.players[player.token] = connection.player = player
        player.attach(connection)
        connection.send(player.state())
        self.scheduler.add(player)

    def _tell_queue(self) -> None:
        """Tell everyone who waits their place, and when a session must have ended for them."""
        now = time.monotonic()
        left = sorted(player.began_s + self.limits.lifetime_s - now for player in self.players.values())
        for place, (connection, *_) in enumerate(self._waiting, start=1):
            connection.send(Busy(queue=place, eta=max(0.0, left[min(place, len(left)) - 1]) if left else 0.0))

    def _forget_waiting(self, connection: Connection) -> None:
        if any(other is connection for other, *_ in self._waiting):
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not connection)
            self._tell_queue()

    def _detach(self, connection: Connection) -> None:
        player, connection.player = connection.player, None
        if player is None or player.channel is not connection:
            return
        player.detach()
        if connection.close_code == LEFT or not player.has_shown:  # no frame was seen: there is nothing to come back to
            self._remove(player)

    def _end(self, player: Player, error: Error) -> None:
        """End a session, and say why."""
        channel = player.channel
        if isinstance(channel, Connection):
            channel.player = None
            channel.close(error.id, error.detail)
        player.channel = None
        self._remove(player)

    def _remove(self, player: Player) -> None:
        player.is_over = True
        self.players.pop(player.token, None)
        self.scheduler.remove(player)
        while self._waiting and len(self.players) < self.limits.sessions:
            self._admit(*self._waiting.popleft())
            self._tell_queue()

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            now = time.monotonic()
            for player in list(self.players.values()):
                self._check(player, now)

    def _check(self, player: Player, now: float) -> None:
        """End a session whose time is over, and notice a client that shows nothing."""
        limits = self.limits
        if player.channel is None:
            if now - player.detached_s > limits.grace_s:
                self._remove(player)
        elif now - player.began_s > limits.lifetime_s:
            self._end(player, Error(id="lifetime", detail=f"a session ends after {limits.lifetime_s / 60:g} minutes"))
        elif now - player.active_s > limits.idle_s:
            self._end(player, Error(id="idle", detail=f"nobody has played for {limits.idle_s / 60:g} minutes"))
        elif player.notice_stall(now) > limits.stall_close_s and isinstance(player.channel, Connection):
            channel = player.channel
            channel.close("stalled", "no frame has been shown for a while; the session is kept for a moment")
            channel.player = None
            player.detach()

    # For the pages of a session

    def record_of(self, token: str, engine: int) -> str:
        """Return the record of a session so far. InputError where there is none."""
        player = self.players.get(token)
        records = player.records() if player else []
        if not 0 <= engine < len(records):
            raise InputError("there is no record: the session has ended, has not begun, or its record is switched off")
        return records[engine]


def describe_engine(engine: Engine) -> dict[str, object]:
    """Return what a client may know about an engine."""
    info = engine.info
    return {
        "name": info.name,
        "size": info.size,
        "fps": info.fps,
        "block_frames": info.block_frames,
        "control": asdict(info.control),
        "prompts": info.prompts,
        "identity": json.loads(json.dumps(dict(info.identity), default=str)),
    }


def spec_hash(engines: Sequence[Engine]) -> str:
    """Return a hash of what decides the frames of these engines."""
    text = json.dumps([describe_engine(engine) for engine in engines], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_comparable(engines: Sequence[Engine]) -> None:
    """Refuse engines that cannot be played side by side on the same inputs."""
    if not engines:
        raise InputError("there is no engine to play")
    names = [engine.info.name for engine in engines]
    if len(set(names)) < len(names):
        raise InputError(f"two checkpoints have the name {names[0]!r}; engines that are compared need different names")
    first = engines[0].info
    for engine in engines[1:]:
        for field in ("fps", "block_frames", "control"):
            values = getattr(first, field), getattr(engine.info, field)
            if values[0] != values[1]:
                raise InputError(
                    f"{first.name} and {engine.info.name} cannot be played on the same inputs: "
                    f"{field} is {values[0]} and {values[1]}"
                )


def warm_up(engine: Engine) -> Iterator[None]:
    """Make blocks one by one, so that the first player does not wait for compilation and caches."""
    images = engine.info.start_images
    if not images:
        return
    session, _ = engine.start(Start(images[0].picture))
    for _ in range(engine.info.warm_up_blocks):
        session.generate([ControlState()] * engine.info.block_frames)
        session.commit()
        yield
