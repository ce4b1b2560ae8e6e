"""What server, recorder and command line need of a playable world. `model.play.world` implements it on a checkpoint.

H W px of a frame, n frames of a block.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from model.control.spec import ControlSpec, ControlState


class StartImage(NamedTuple):
    """A picture from which a session can start: a name for people, and uint8 [H, W, 3]."""

    name: str
    picture: np.ndarray


@dataclass(frozen=True)
class EngineInfo:
    """What is fixed while an engine runs. Sessions of engines that differ in `identity` do not replay each other's records."""

    name: str  # of the checkpoint, for people
    size: tuple[int, int]  # width and height of the frames, px
    fps: float  # frames a second of the world's time
    block_frames: int  # frames of a block after the first
    control: ControlSpec  # how keys and mouse become motion
    prompts: tuple[str, ...]  # prompts that the world is known to follow; empty: it reads any text
    start_images: tuple[StartImage, ...]  # the first is the default
    # what decides the frames besides seed, start and inputs: checkpoint hash, causal spec, backend, threads, code version
    identity: Mapping[str, Any]
    attract: bytes = b""  # an MP4 of play, shown while nobody plays; empty: none
    warm_up_blocks: int = 1  # blocks after which nothing is computed for the first time
    overlaps_decode: bool = False  # whether a block can be committed, and the next one made, while frames of the last come


class Start(NamedTuple):
    """How a session starts. picture: uint8 [H, W, 3] of any size; it is cropped and scaled to the world's."""

    picture: np.ndarray
    prompt: str = ""
    seed: int = 0


class BlockFrames(NamedTuple):
    """The frames of a block. frames: uint8 [n, H, W, 3]. seconds: time spent by stage ("denoise", "decode", ...)."""

    number: int  # 0 is the start image by itself
    frames: np.ndarray
    seconds: Mapping[str, float]


class Session(Protocol):
    """A world being played. Not safe for use by two threads at once; sessions of one engine take turns."""

    def generate(self, controls: Sequence[ControlState]) -> BlockFrames:
        """Return the next block. controls: one for each of its frames, `block_frames` of them.

        `commit` must follow before the next call: frames can be sent before the block enters the cache.
        """
        ...

    def begin(self, controls: Sequence[ControlState]) -> "Future[BlockFrames]":
        """Make the next block and return its frames to come. `commit` may follow before they have.

        Where `EngineInfo.overlaps_decode` is False they have come already.
        """
        ...

    def commit(self) -> float:
        """Enter the last block into the cache; return the seconds it took."""
        ...

    def set_prompt(self, text: str, blend_blocks: int = 0) -> None:
        """Change the prompt from the next block on. InputError for a text that the world cannot read.

        blend_blocks: blend from the old prompt to the new one over this many blocks. Call it between `commit` and `generate`.
        """
        ...


class Engine(Protocol):
    """A checkpoint that is loaded and ready to be played."""

    info: EngineInfo

    def start(self, start: Start) -> tuple[Session, BlockFrames]:
        """Start a session; return it with block 0, the start image as the world shows it, which is already committed."""
        ...
