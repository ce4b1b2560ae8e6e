"""The messages of the play page: WebSocket `/ws?v=1`, JSON both ways, and one binary message a block.

    client   hello start ctl prompt pause resume step reset ack record ping
    server   ready stage busy state error, and blocks: u32 (little-endian) length of the header, the header (JSON), pictures

`docs/play.md` has the table. A change that breaks clients raises VERSION.
"""

import json
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from curation.errors import InputError
from model.control.spec import KEYS
from model.play.limits import PROMPT_CHARS

VERSION = 1
JPEG_QUALITY = 92
_MAX_MOUSE = 1e5  # mouse counts of a message; a hand makes some hundreds


class Message(BaseModel):
    """A message of either side. A field that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# From the client


class Hello(Message):
    """The first message. resume: the session of a connection that broke."""

    type: Literal["hello"]
    v: int
    resume: str = Field("", max_length=64)


class StartWorld(Message):
    """Begin to play, or begin again with another picture.

    image: a PNG or JPEG file as base64; else preset: the name of a start image; else the first start image. engines: names of
    one or more engines that play side by side on the same inputs; empty: the first one. spec: the hash in `ready`; if it is
    given, a server with other engines refuses.
    """

    type: Literal["start"]
    image: str = ""
    preset: str = Field("", max_length=200)
    prompt: str = Field("", max_length=PROMPT_CHARS)
    seed: int = Field(0, ge=0, lt=2**31)
    spec: str = Field("", max_length=64)
    engines: tuple[str, ...] = Field((), max_length=4)


class Control(Message):
    """Keys held down, and mouse counts since the last of these messages. seq counts up from 1; t is the client's clock, ms."""

    type: Literal["ctl"]
    seq: int = Field(ge=1)
    t: float = 0.0
    keys: tuple[str, ...] = Field((), max_length=len(KEYS))
    dx: float = Field(0.0, ge=-_MAX_MOUSE, le=_MAX_MOUSE, allow_inf_nan=False)
    dy: float = Field(0.0, ge=-_MAX_MOUSE, le=_MAX_MOUSE, allow_inf_nan=False)

    @field_validator("keys")
    @classmethod
    def _are_known(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(keys) - KEYS):
            raise ValueError(f"unknown keys {unknown}; known are {', '.join(sorted(KEYS))}")
        return keys


class PromptChange(Message):
    """Queue another prompt. seq counts up from 1. blend_blocks: blend from the old prompt over so many blocks."""

    type: Literal["prompt"]
    seq: int = Field(ge=1)
    text: str = Field(max_length=PROMPT_CHARS)
    blend_blocks: int = Field(0, ge=0, le=64)


class Pause(Message):
    """Stop after the block that is being made."""

    type: Literal["pause"]


class Resume(Message):
    """Continue after a pause."""

    type: Literal["resume"]


class StepOnce(Message):
    """Pause, and make one block."""

    type: Literal["step"]


class Reset(Message):
    """Begin again with the same picture and prompt. seed: another seed than before."""

    type: Literal["reset"]
    seed: int | None = Field(None, ge=0, lt=2**31)


class Ack(Message):
    """A frame of generation `gen` is on the screen since t_shown, ms of the client's clock.

    early: for the first frame of a block, how many ms before it was due it came. The server starts blocks as late as it can.
    """

    type: Literal["ack"]
    gen: int
    frame: int = Field(ge=0)
    t_shown: float = 0.0
    early: float | None = Field(None, ge=-1e5, le=1e5, allow_inf_nan=False)


class RecordSwitch(Message):
    """Keep a record of the session or throw it away. On: from the next start or reset, where a record can begin."""

    type: Literal["record"]
    on: bool


class Ping(Message):
    """Ask for a `state` that repeats t."""

    type: Literal["ping"]
    t: float = 0.0


ClientMessage = Hello | StartWorld | Control | PromptChange | Pause | Resume | StepOnce | Reset | Ack | RecordSwitch | Ping
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])


# From the server

PauseReason = Literal["", "user", "stalled"]
PromptStateName = Literal["queued", "recached", "active", "refused"]


class Ready(Message):
    """The answer to hello. session: the secret name to resume with, and to fetch the record with; "" before a start."""

    type: Literal["ready"] = "ready"
    v: int = VERSION
    session: str = ""
    resumed: bool = False
    gen: int = 0
    spec: str
    engines: tuple[dict[str, Any], ...]
    starts: tuple[str, ...]
    limits: dict[str, float]


class Stage(Message):
    """What the server is doing before frames can come. pct: percent done, eta: seconds left, where known."""

    type: Literal["stage"] = "stage"
    id: Literal["load", "warm-up", "start", "video", "done"]
    pct: float | None = None
    eta: float | None = None
    detail: str = ""


class Busy(Message):
    """All sessions are taken. queue: the place in the queue, 1 is next. eta: seconds until a session must end at the latest."""

    type: Literal["busy"] = "busy"
    queue: int
    eta: float


class PromptState(Message):
    """A prompt and what became of it. block: the first block made with it. detail: why it was refused."""

    seq: int
    text: str
    state: PromptStateName
    block: int | None = None
    detail: str = ""


class State(Message):
    """The state of a session. It comes at each change, and as the answer to ping."""

    type: Literal["state"] = "state"
    session: str
    gen: int
    block: int
    seed: int
    paused: PauseReason
    recording: bool
    prompts: tuple[PromptState, ...]
    dropped: int
    ping: float | None = None
    clock: float


ErrorId = Literal[
    "version", "message", "order", "rate", "image", "preset", "prompt", "spec", "engines", "resume", "full", "load", "engine",
    "idle", "lifetime", "stalled", "replaced", "hello",
]  # fmt: skip


class Error(Message):
    """Something the client did that the server refused, or why a connection is closed."""

    type: Literal["error"] = "error"
    id: ErrorId
    detail: str


class BlockHeader(Message):
    """What is known about the frames of a block.

    Clocks (t_in, t_sample, t_start) are ms of the server's clock, as in State.clock; the other t_ are durations in ms.
    """

    gen: int  # generation: frames of an older one must not be shown
    block: int  # 0 is the start image
    frame0: int  # number of the first frame in this generation
    n: int  # frames, for each engine
    engines: tuple[str, ...]  # pictures come engine by engine
    bytes: tuple[int, ...]  # length of each picture
    format: Literal["jpeg", "png"]
    ctl_seq: tuple[int, ...]  # for each frame the last control message that shaped it
    prompt_seq: int  # the prompt in these frames; 0: that of the start
    prompt_state: PromptStateName  # of the newest prompt
    seed: int
    poses: tuple[tuple[float, float, float], ...]  # of each frame: x to the right, z forward, yaw in degrees, of the controls
    sha: tuple[str, ...]  # sha256 of the raw frames, for each engine
    t_in: float | None  # when the newest control message came
    t_sample: float  # when the controls were sampled
    t_start: float  # when the engine began
    t_recache: float  # of a prompt that changed, and whatever else is neither denoising nor decoding
    t_denoise: float
    t_decode: float
    t_enc: float
    t_commit: float  # of the block before: this one is committed after it was sent


class ProtocolError(InputError):
    """A message of a client that is refused."""

    def __init__(self, id_: ErrorId, detail: str) -> None:
        super().__init__(detail)
        self.id: ErrorId = id_

    @property
    def message(self) -> Error:
        return Error(id=self.id, detail=str(self))


def parse(text: str) -> ClientMessage:
    """Return a client's message. ProtocolError for what is not one."""
    try:
        return _CLIENT.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError("message", f"{where}: {first['msg']}" if where else first["msg"]) from None


def encode_frames(frames_nHW3: np.ndarray, exact: bool) -> list[bytes]:
    """Return each frame as a JPEG without colour subsampling, or as a PNG if it must be exact."""
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    pictures = []
    for frame in frames_nHW3:
        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".png", picture) if exact else cv2.imencode(".jpg", picture, jpeg)
        pictures.append(data.tobytes())
    return pictures


def pack(header: BlockHeader, pictures: Sequence[bytes]) -> bytes:
    """Return the binary message of a block."""
    text = header.model_dump_json().encode()
    return b"".join((struct.pack("<I", len(text)), text, *pictures))


def unpack(message: bytes) -> tuple[BlockHeader, list[bytes]]:
    """Return header and pictures of a binary message."""
    (length,) = struct.unpack_from("<I", message)
    header = BlockHeader.model_validate(json.loads(message[4 : 4 + length]))
    pictures, at = [], 4 + length
    for size in header.bytes:
        pictures.append(message[at : at + size])
        at += size
    return header, pictures
