"""A session as a file: `.gcplay` is lines of JSON, a header and then one line a block, from which it can be replayed.

A replay runs through the same session code, and its frames are bit-equal to those of the session. Where engine and record
differ in anything that decides the frames, the replay is refused with the name of the field.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import takewhile
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.errors import InputError
from model.control.spec import KEYS, ControlState
from model.play.engine import BlockFrames, Engine, Session, Start

VERSION = 1


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Header(_Line):
    """The first line: what the session began with, and what made its frames."""

    gcplay: int = VERSION
    engine: str
    identity: dict[str, Any]
    control: dict[str, Any]
    size: tuple[int, int]  # px
    fps: float
    block_frames: int
    seed: int
    prompt: str
    image: str  # a PNG as base64


class PromptLine(_Line):
    """A change of the prompt before a block."""

    text: str
    blend_blocks: int = 0


class BlockLine(_Line):
    """A block: the keys, dx and dy of each frame, the changes of the prompt before it, and sha256 of its frames."""

    block: int
    controls: tuple[tuple[tuple[Literal[tuple(sorted(KEYS))], ...], float, float], ...] = ()  # type: ignore[valid-type]
    prompts: tuple[PromptLine, ...] = ()
    sha: str = Field(pattern="^[0-9a-f]{64}$")

    def states(self) -> list[ControlState]:
        return [ControlState(frozenset(keys), dx, dy) for keys, dx, dy in self.controls]


class Record(NamedTuple):
    """A record that was read. is_truncated: its last line was cut off, and left out."""

    header: Header
    blocks: tuple[BlockLine, ...]
    is_truncated: bool

    def controls(self) -> list[ControlState]:
        """Return the controls of all frames."""
        return [state for block in self.blocks for state in block.states()]


def sha_of(frames: np.ndarray) -> str:
    """Return the sha256 of raw frames."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


class RecordedSession:
    """A session that writes its record. A block is in the record as soon as its frames have come."""

    def __init__(self, session: Session, header: Header, first: BlockFrames) -> None:
        self._session, self._prompts = session, []  # type: tuple[Session, list[PromptLine]]
        self.last_sha = sha_of(first.frames)
        self._lines = [header.model_dump_json(), BlockLine(block=first.number, sha=self.last_sha).model_dump_json()]

    def generate(self, controls: Sequence[ControlState]) -> BlockFrames:
        block = self._session.generate(controls)
        _, self.last_sha = self._line(controls)(block)
        return block

    def begin(self, controls: Sequence[ControlState]) -> "Future[tuple[BlockFrames, str]]":
        """Make the next block and return its frames, and their sha256, to come."""
        coming = self._session.begin(controls)
        record, made = self._line(controls), Future[tuple[BlockFrames, str]]()

        def finish(frames: "Future[BlockFrames]") -> None:
            try:
                made.set_result(record(frames.result()))
            except Exception as error:
                made.set_exception(error)

        coming.add_done_callback(finish)
        return made

    def _line(self, controls: Sequence[ControlState]) -> Callable[[BlockFrames], tuple[BlockFrames, str]]:
        """Reserve the next line of the record; return how to write it once the frames have come."""
        place, prompts = len(self._lines), tuple(self._prompts)
        self._lines.append("")
        self._prompts.clear()

        def write(block: BlockFrames) -> tuple[BlockFrames, str]:
            sha = sha_of(block.frames)
            line = BlockLine(
                block=block.number,
                controls=tuple((tuple(sorted(state.keys)), state.mouse_dx, state.mouse_dy) for state in controls),
                prompts=prompts,
                sha=sha,
            )
            self._lines[place] = line.model_dump_json(exclude_defaults=True)
            return block, sha

        return write

    def commit(self) -> float:
        return self._session.commit()

    def set_prompt(self, text: str, blend_blocks: int = 0) -> None:
        self._session.set_prompt(text, blend_blocks)
        self._prompts.append(PromptLine(text=text, blend_blocks=blend_blocks))

    def text(self) -> str:
        """Return the record so far, up to the last block whose frames have come."""
        return "\n".join(takewhile(bool, self._lines)) + "\n"


def start_recorded(engine: Engine, start: Start) -> tuple[RecordedSession, BlockFrames]:
    """Start a session that writes its record."""
    session, first = engine.start(start)
    _, png = cv2.imencode(".png", cv2.cvtColor(start.picture, cv2.COLOR_RGB2BGR))
    header = Header(
        **_engine_fields(engine), seed=start.seed, prompt=start.prompt, image=base64.b64encode(png.tobytes()).decode()
    )
    return RecordedSession(session, header, first), first


def _engine_fields(engine: Engine) -> dict[str, Any]:
    """Return what a header says about an engine, as JSON gives it back."""
    info = engine.info
    fields = {
        "engine": info.name,
        "identity": dict(info.identity),
        "control": dataclasses.asdict(info.control),
        "size": info.size,
        "fps": info.fps,
        "block_frames": info.block_frames,
    }
    return json.loads(json.dumps(fields, default=str))


def parse_record(text: str, name: str) -> Record:
    """Return a record. A last line that was cut off is left out. InputError names any other line that is wrong."""
    lines = text.split("\n")
    is_cut = lines[-1] != ""
    if not is_cut:
        lines.pop()
    if not lines:
        raise InputError(f"{name}: the file is empty; a record begins with a header")
    header = _parse_header(lines[0], name)
    blocks: list[BlockLine] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            block = BlockLine.model_validate_json(line)
        except ValidationError as error:
            if is_cut and number == len(lines):
                return Record(header, tuple(blocks), is_truncated=True)
            raise InputError(f"{name}: line {number} is not a block: {_first_complaint(error)}") from None
        if block.block != len(blocks):
            raise InputError(f"{name}: line {number} is block {block.block}, but block {len(blocks)} should come here")
        blocks.append(block)
    return Record(header, tuple(blocks), is_truncated=False)


def _parse_header(line: str, name: str) -> Header:
    try:
        version = json.loads(line)["gcplay"]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{name}: line 1 is not the header of a .gcplay record") from None
    if version != VERSION:
        raise InputError(
            f"{name}: the record has version {version!r}, but this release reads {VERSION}; use the release that wrote it"
        )
    try:
        return Header.model_validate_json(line)
    except ValidationError as error:
        raise InputError(f"{name}: line 1 is not the header of a .gcplay record: {_first_complaint(error)}") from None


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")


def read_record(path: str) -> Record:
    """Return the record in a file."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse_record(file.read(), path)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file, so not a .gcplay record") from None
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file") from None


def check_identity(record: Record, engine: Engine) -> None:
    """Refuse a record of another engine. InputError names the field that differs, and both values."""
    ours = _engine_fields(engine)
    theirs = record.header.model_dump(mode="json")
    for field in ("identity", "control", "size", "fps", "block_frames"):
        if difference := _first_difference(field, theirs[field], ours[field]):
            path, recorded, present = difference
            raise InputError(
                f"this record cannot be replayed: {path} is {_short(recorded)} in the record, "
                f"but {_short(present)} in {engine.info.name}"
            )


_MISSING = "missing"


def _first_difference(path: str, recorded: Any, present: Any) -> tuple[str, Any, Any] | None:
    if isinstance(recorded, Mapping) and isinstance(present, Mapping):
        for key in sorted({*recorded, *present}):
            values = recorded.get(key, _MISSING), present.get(key, _MISSING)
            if difference := _first_difference(f"{path}.{key}", *values):
                return difference
        return None
    return None if recorded == present else (path, recorded, present)


def _short(value: Any) -> str:
    text = value if value is _MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def replay(record: Record, engine: Engine) -> Iterator[BlockFrames]:
    """Yield the blocks of a record, made again. InputError for another engine, or where frames differ from the record."""
    check_identity(record, engine)
    header = record.header
    session, block = engine.start(Start(_decode_image(header.image), header.prompt, header.seed))
    for line in record.blocks:
        if line.block:
            for prompt in line.prompts:
                session.set_prompt(prompt.text, prompt.blend_blocks)
            block = session.generate(line.states())
        sha = sha_of(block.frames)
        if sha != line.sha:
            raise InputError(
                f"the replay differs from the record: frames of block {line.block} have sha256 {sha[:12]}, not {line.sha[:12]}"
            )
        yield block
        if line.block:
            session.commit()


def _decode_image(image: str) -> np.ndarray:
    try:
        data = np.frombuffer(base64.b64decode(image, validate=True), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (ValueError, cv2.error):
        picture = None
    if picture is None:
        raise InputError("the start image of this record cannot be decoded")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
