"""One player: worlds that are played on the same inputs, when their next block may be made, and what is said about it.

A turn samples the controls, makes a block, hands it to the connection, and only then commits it: the frames do not wait for the
commit. Where engines decode on a thread of their own, the block is committed while it is decoded, and the next turn may begin.
Everything here runs on the event loop, except the functions given to `work`.
"""

import asyncio
import logging
import math
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from curation.errors import InputError, describe
from model.control.spec import ControlState
from model.control.trajectory import PlayerState, step
from model.play.engine import BlockFrames, Engine, Start
from model.play.inputs import Inputs, Sample
from model.play.limits import Limits
from model.play.protocol import (
    BlockHeader,
    Error,
    Message,
    PauseReason,
    PromptChange,
    PromptState,
    PromptStateName,
    Stage,
    State,
    encode_frames,
    pack,
)
from model.play.record import RecordedSession, start_recorded
from model.play.scheduler import Work

log = logging.getLogger(__name__)

_LEAD_BLOCKS = 1  # frames made before the last shown one; more would be older than the player's last input
_PACE = 0.9  # a block may begin this part of its playing time after the last one: slower than that could never catch up
_EARLY_S = 0.03  # by so much a block should reach the client before it is due: sooner makes its controls older than needed
_MIN_MARGIN_S, _MAX_MARGIN_S = 0.02, 0.4  # for the way to the client, learnt from its acknowledgements
_MAX_PROMPTS = 100  # in a session


class Channel(Protocol):
    """The connection of a player."""

    exact: bool

    def send(self, message: Message) -> None: ...

    def send_block(self, message: bytes) -> bool:
        """Queue a block; return whether one that was never sent had to make room."""
        ...

    def drop_block(self) -> None: ...


class _Made(NamedTuple):
    """The blocks of all worlds, made by the worker."""

    blocks: list[BlockFrames]
    sha: tuple[str, ...]
    pictures: list[bytes]
    exact: bool
    start_s: float
    encode_s: float


class Player:
    """A player. `wait_s`, `turn` and `fail` are for the scheduler."""

    is_background = False

    def __init__(
        self, engines: Sequence[Engine], start: Start, limits: Limits, on_end: Callable[["Player", Error], None]
    ) -> None:
        now = time.monotonic()
        self.token = secrets.token_urlsafe(16)
        self.channel: Channel | None = None
        self.gen = 0
        self.began_s = self.active_s = self.detached_s = now
        self.paused: PauseReason = ""
        self.recording = True
        self.is_over = False
        self._limits, self._on_end = limits, on_end
        self.restart(engines, start)

    # What a client asks for

    def restart(self, engines: Sequence[Engine], start: Start) -> None:
        """Begin again. Frames of the old generation are not sent any more."""
        info = engines[0].info
        self.engines, self.start_values = tuple(engines), start
        self.gen += 1
        self.inputs = Inputs(info.fps)
        self.block, self._frames, self._acked = -1, 0, -1
        self._pose = PlayerState()
        self._worlds: list[RecordedSession] = []
        self._prompts: list[PromptState] = []
        self._queue: list[PromptChange] = []
        self._active_prompt, self._next_prompt_block = 0, 0
        self._recording_this = self.recording
        self._commit_s, self._not_before, self._steps = 0.0, 0.0, 0
        self._turnarounds_s: deque[float] = deque(maxlen=8)  # from when a block was due to begin until it was sent
        self._margin_s, self._ready_s = _EARLY_S, time.monotonic()
        self._waits_since: float | None = None
        self._delivery: asyncio.Task[None] | None = None  # of the last block that was made
        self.paused = ""
        if self.channel:
            self.channel.drop_block()

    def reset(self, seed: int | None) -> None:
        self.restart(self.engines, self.start_values if seed is None else self.start_values._replace(seed=seed))

    def add_prompt(self, change: PromptChange) -> None:
        if len(self._prompts) >= _MAX_PROMPTS:
            raise InputError(f"a session takes {_MAX_PROMPTS} prompts; reset to go on")
        if any(prompt.seq >= change.seq for prompt in self._prompts):
            raise InputError(f"prompt {change.seq} came after a later one; seq must count up")
        self._queue.append(change)
        self._prompts.append(PromptState(seq=change.seq, text=change.text, state="queued"))

    def pause(self) -> None:
        self.paused, self._steps = "user", 0

    def resume(self) -> None:
        if self.paused:
            self.inputs.release()
        self.paused, self._waits_since, self._ready_s = "", None, time.monotonic()

    def step_once(self) -> None:
        self.paused, self._steps, self._ready_s = "user", 1, time.monotonic()

    def acknowledge(self, gen: int, frame: int, early_s: float | None = None) -> None:
        if gen != self.gen or not self._acked < frame < self._frames:
            return
        was_ahead, self._acked, self._waits_since = self._is_ahead, frame, None
        if early_s is not None:
            self._margin_s += 0.5 * (_EARLY_S - early_s) if early_s < _EARLY_S else 0.1 * (_EARLY_S - early_s)
            self._margin_s = min(max(self._margin_s, _MIN_MARGIN_S), _MAX_MARGIN_S)
        if was_ahead and not self._is_ahead:
            self._ready_s = time.monotonic()
            playing_s = (1 + self._block_frames) / self.engines[0].info.fps  # the shown frame, and the block after it
            lead_s = max(self._turnarounds_s, default=playing_s) + self._margin_s
            self._not_before = max(self._not_before, self._ready_s + playing_s - lead_s)
        if self.paused == "stalled":
            self.paused = ""

    def switch_record(self, on: bool) -> None:
        self.recording = on
        self._recording_this = self._recording_this and on

    def attach(self, channel: Channel) -> None:
        """Take over a connection. What was on its way over the old one is lost, so that it counts as shown."""
        self.channel = channel
        self.inputs.release()
        self.inputs.restart_sequence()
        self._acked, self._waits_since, self._ready_s = self._frames - 1, None, time.monotonic()
        if self.paused == "stalled":
            self.paused = ""

    def detach(self) -> None:
        self.channel, self.detached_s = None, time.monotonic()
        self.inputs.release()

    @property
    def has_shown(self) -> bool:
        """Whether the client has shown a frame, in this generation or an older one."""
        return self._acked >= 0 or self.gen > 1

    # What a client is told

    def send(self, message: Message) -> None:
        if self.channel:
            self.channel.send(message)

    def state(self, dropped: int = 0, ping: float | None = None) -> State:
        return State(
            session=self.token, gen=self.gen, block=self.block, seed=self.start_values.seed, paused=self.paused,
            recording=self._recording_this, prompts=tuple(self._prompts), dropped=dropped, ping=ping,
            clock=1e3 * time.monotonic(),
        )  # fmt: skip

    def records(self) -> list[str]:
        """Return the record so far of each world; none where it is switched off."""
        return [world.text() for world in self._worlds] if self._recording_this else []

    # Turns

    @property
    def _can_change_prompt(self) -> bool:
        return bool(self._queue) and self.block + 1 >= self._next_prompt_block

    @property
    def _block_frames(self) -> int:
        return self.engines[0].info.block_frames

    @property
    def _is_ahead(self) -> bool:
        """Whether the client has yet to show more than one block."""
        return self._frames - 1 - self._acked > _LEAD_BLOCKS * self._block_frames

    def wait_s(self, now: float) -> float:
        if self.is_over or self.channel is None:
            return math.inf
        if not self._worlds or self._can_change_prompt:
            return 0.0
        return self._block_wait_s(now)

    def _block_wait_s(self, now: float) -> float:
        if (self.paused and not self._steps) or self._is_ahead:
            return math.inf
        return max(0.0, self._not_before - now)

    def notice_stall(self, now: float) -> float:
        """Pause where the client shows nothing any more; return for how long it has not."""
        if self.channel is None or not self._is_ahead or self.paused == "user":
            self._waits_since = None
            return 0.0
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since > self._limits.stall_pause_s and not self.paused:
            self.paused = "stalled"
            self.send(self.state())
        return now - self._waits_since

    async def turn(self, work: Work) -> None:
        gen = self.gen
        if not self._worlds:
            await self._open(gen, work)
            return
        await self._apply_prompt(gen, work)  # as soon as it comes, so that the next block does not wait for it
        if gen != self.gen or self.channel is None or self._block_wait_s(time.monotonic()) > 0:
            return
        self._steps = max(0, self._steps - 1)
        worlds, sample, now = self._worlds, self.inputs.sample(self._block_frames), time.monotonic()
        due, self._not_before = (
            max(self._not_before, self._ready_s),
            now + _PACE * self._block_frames / self.engines[0].info.fps,
        )
        if any(engine.info.overlaps_decode for engine in self.engines):
            await self._begin(gen, work, sample, now, due)
        else:
            made = await work(_make_block, worlds, sample.controls, self.channel.exact)
            if gen == self.gen:
                self._emit(made, sample, now)
                self._turnarounds_s.append(time.monotonic() - due)
        commit_s = await work(_commit, worlds)
        if gen == self.gen:
            self._commit_s = commit_s
            await self._apply_prompt(gen, work)

    async def _begin(self, gen: int, work: Work, sample: Sample, now: float, due: float) -> None:
        """Make a block, and send it once its frames have come, after those of the block before."""
        began, exact = time.monotonic(), self.channel.exact if self.channel else False
        coming = await work(_begin_block, self._worlds, sample.controls)
        if gen != self.gen:
            return
        announced = self._announce(self.block + 1, self._block_frames, sample, now)
        before = self._delivery

        async def deliver() -> None:
            if before is not None:
                await before
            try:
                blocks = [await asyncio.wrap_future(each) for each in coming]
                encoded = asyncio.get_running_loop().run_in_executor(None, _encoded, blocks, exact, began)
                made = await encoded
            except Exception as error:
                if gen == self.gen:
                    self.fail(error)
                return
            if gen == self.gen:
                self._send_block(made, announced)
                self._turnarounds_s.append(time.monotonic() - due)

        self._delivery = asyncio.create_task(deliver())

    async def _open(self, gen: int, work: Work) -> None:
        self.send(Stage(id="start"))
        exact = self.channel.exact if self.channel else False
        now = time.monotonic()
        sessions, made = await work(_start_worlds, self.engines, self.start_values, exact)
        if gen != self.gen:
            return
        self._worlds = sessions
        self.send(Stage(id="done", pct=100.0))
        self._emit(made, Sample((), 0, None), now)
        self.send(self.state())

    async def _apply_prompt(self, gen: int, work: Work) -> None:
        """Hand the next prompt of the queue to the worlds, unless an earlier one still blends."""
        if not self._can_change_prompt:
            return
        change = self._queue.pop(0)
        try:
            await work(_set_prompt, self._worlds, change)
        except InputError as error:
            if gen == self.gen:
                self._mark(change.seq, "refused", detail=str(error))
            return
        if gen == self.gen:
            self._next_prompt_block = self.block + 1 + max(1, change.blend_blocks)
            self._active_prompt = change.seq
            self._mark(change.seq, "recached", self.block + 1)

    def _mark(self, seq: int, state: PromptStateName, block: int | None = None, detail: str = "") -> None:
        self._prompts = [
            prompt.model_copy(update={"state": state, "block": block, "detail": detail}) if prompt.seq == seq else prompt
            for prompt in self._prompts
        ]
        self.send(self.state())

    def _emit(self, made: _Made, sample: Sample, sampled_s: float) -> None:
        """Count a block, and hand it to the connection."""
        block = made.blocks[0]
        self._send_block(made, self._announce(block.number, len(block.frames), sample, sampled_s))

    def _announce(self, number: int, count: int, sample: Sample, sampled_s: float) -> dict[str, Any]:
        """Count a block of so many frames; return what its header says that is known before the frames are."""
        newly_active = [prompt for prompt in self._prompts if prompt.state == "recached"]
        for prompt in newly_active:
            self._mark(prompt.seq, "active", number)
        announced = {
            "gen": self.gen,
            "block": number,
            "frame0": self._frames,
            "n": count,
            "engines": tuple(engine.info.name for engine in self.engines),
            "ctl_seq": (sample.seq,) * count,
            "prompt_seq": self._active_prompt,
            "prompt_state": self._prompts[-1].state if self._prompts else "active",
            "seed": self.start_values.seed,
            "poses": self._poses(sample.controls) or ((0.0, 0.0, 0.0),),
            "t_in": None if sample.received_s is None else 1e3 * sample.received_s,
            "t_sample": 1e3 * sampled_s,
            "t_commit": 1e3 * self._commit_s,
        }
        self.block, self._frames = number, self._frames + count
        return announced

    def _send_block(self, made: _Made, announced: dict[str, Any]) -> None:
        """Hand a block that was announced to the connection."""
        stages: Counter[str] = Counter()
        for made_block in made.blocks:
            stages.update({name: 1e3 * seconds for name, seconds in made_block.seconds.items()})
        denoise, decode = stages.pop("denoise", 0.0), stages.pop("decode", 0.0)
        header = BlockHeader(
            **announced,
            bytes=tuple(len(picture) for picture in made.pictures),
            format="png" if made.exact else "jpeg",
            sha=made.sha,
            t_start=1e3 * made.start_s,
            t_recache=sum(stages.values()),
            t_denoise=denoise,
            t_decode=decode,
            t_enc=1e3 * made.encode_s,
        )
        if self.channel:
            self.channel.send_block(pack(header, made.pictures))

    def _poses(self, controls: Sequence[ControlState]) -> tuple[tuple[float, float, float], ...]:
        """Walk on by these controls; return x, z and yaw at each frame."""
        poses = []
        for state in controls:
            self._pose = step(self._pose, state, self.engines[0].info.control)
            poses.append((round(self._pose.x, 4), round(self._pose.z, 4), round(self._pose.yaw_deg, 3)))
        return tuple(poses)

    def fail(self, error: Exception) -> None:
        if not isinstance(error, InputError):
            log.error("a session stopped: %s", describe(error), exc_info=error)
        self._on_end(self, Error(id="engine", detail=describe(error)))


def _start_worlds(engines: Sequence[Engine], start: Start, exact: bool) -> tuple[list[RecordedSession], _Made]:
    """Start a session of each engine. Runs in the worker thread."""
    began = time.monotonic()
    sessions, blocks = zip(*(start_recorded(engine, start) for engine in engines), strict=True)
    shas = [session.last_sha for session in sessions]
    return list(sessions), _encoded(list(zip(blocks, shas, strict=True)), exact, began)


def _make_block(sessions: Sequence[RecordedSession], controls: Sequence[ControlState], exact: bool) -> _Made:
    """Make the next block of each session. Runs in the worker thread."""
    began = time.monotonic()
    return _encoded([(session.generate(controls), session.last_sha) for session in sessions], exact, began)


def _begin_block(
    sessions: Sequence[RecordedSession], controls: Sequence[ControlState]
) -> "list[Future[tuple[BlockFrames, str]]]":
    """Make the next block of each session, whose frames are to come. Runs in the worker thread."""
    return [session.begin(controls) for session in sessions]


def _encoded(blocks: Sequence[tuple[BlockFrames, str]], exact: bool, began: float) -> _Made:
    """Encode the frames of all worlds' blocks, each given with its sha."""
    encode_from = time.monotonic()
    pictures = [picture for block, _ in blocks for picture in encode_frames(block.frames, exact)]
    made, shas = [block for block, _ in blocks], tuple(sha for _, sha in blocks)
    return _Made(made, shas, pictures, exact, began, time.monotonic() - encode_from)


def _commit(sessions: Sequence[RecordedSession]) -> float:
    return sum(session.commit() for session in sessions)


def _set_prompt(sessions: Sequence[RecordedSession], change: PromptChange) -> None:
    for session in sessions:
        session.set_prompt(change.text, change.blend_blocks)
