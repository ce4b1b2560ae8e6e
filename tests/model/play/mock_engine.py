"""An engine for tests: the colour of a frame is an exact function of controls, prompt and seed."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from curation.errors import InputError
from model.control.spec import ControlSpec, ControlState
from model.play.engine import BlockFrames, EngineInfo, Start, StartImage

WIDTH, HEIGHT, BLOCK = 64, 48, 4
# The keys that are drawn: value of the red channel. The last pressed in this order wins.
RED = {"A": 60, "D": 100, "S": 140, "LEFT": 160, "RIGHT": 180, "W": 220}
PROMPTS = {"": 0, "snow": 200, "night": 100}


def red_of(state: ControlState) -> int:
    return max((RED.get(key, 20) for key in state.keys), default=10)


def blue_of(prompt: str) -> int:
    return PROMPTS[prompt]


def picture(value: int) -> np.ndarray:
    rows = np.linspace(0, 255, HEIGHT, dtype=np.uint8)[:, None]
    frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    frame[..., 0], frame[..., 1], frame[..., 2] = value, rows, 255 - rows
    return frame


class MockSession:
    def __init__(self, engine: "MockEngine", start: Start) -> None:
        self._engine, self._prompt, self._seed, self._number = engine, start.prompt, start.seed, 0
        self._x = 0.0
        self._is_committed = True
        blue_of(start.prompt)

    def generate(self, controls: Sequence[ControlState]) -> BlockFrames:
        assert self._is_committed, "commit must follow before the next block"
        assert len(controls) == self._engine.info.block_frames
        assert threading.get_ident() == self._engine.thread or self._engine.thread is None
        if self._engine.block_s:
            time.sleep(self._engine.block_s)
        self._number += 1
        frames = np.empty((len(controls), HEIGHT, WIDTH, 3), np.uint8)
        for i, state in enumerate(controls):
            self._x += state.mouse_dx
            frames[i, ..., 0] = red_of(state)
            frames[i, ..., 1] = (self._seed * 40 + int(self._x)) % 256
            frames[i, ..., 2] = blue_of(self._prompt)
        self._is_committed = False
        self._engine.log.append(("generate", self._number))
        return BlockFrames(self._number, frames, {"denoise": self._engine.block_s, "decode": 0.001})

    def begin(self, controls: Sequence[ControlState]) -> Future[BlockFrames]:
        block = self.generate(controls)

        def decode() -> BlockFrames:
            time.sleep(self._engine.decode_s)
            self._engine.log.append(("decoded", block.number))
            if block.number == self._engine.broken_block:
                raise RuntimeError("the decoder broke")
            return block

        return self._engine.decoder.submit(decode)

    def commit(self) -> float:
        self._is_committed = True
        self._engine.log.append(("commit", self._number))
        self._engine.on_commit()
        return 0.002

    def set_prompt(self, text: str, blend_blocks: int = 0) -> None:
        assert self._is_committed
        if text not in PROMPTS:
            raise InputError(f"this world does not know {text!r}; it knows {', '.join(PROMPTS)}")
        self._prompt = text
        self._engine.log.append(("prompt", text))


class MockEngine:
    """decode_s: decode each block on a thread, for so long; None: in `generate`."""

    def __init__(
        self,
        name: str = "mock",
        block_s: float = 0.0,
        fps: float = 16.0,
        identity: Mapping[str, Any] | None = None,
        decode_s: float | None = None,
    ):
        self.info = EngineInfo(
            name=name,
            size=(WIDTH, HEIGHT),
            fps=fps,
            block_frames=BLOCK,
            control=ControlSpec(fps=fps),
            prompts=("snow", "night"),
            start_images=tuple(
                StartImage(label, picture(value)) for label, value in (("cave", 40), ("hall", 90), ("yard", 140))
            ),
            identity=identity or {"checkpoint": hashlib.sha256(b"mock").hexdigest()[:12], "threads": 1, "causal": {"sink": 1}},
            overlaps_decode=decode_s is not None,
        )
        self.decode_s, self.broken_block = decode_s or 0.0, -1
        self.decoder = ThreadPoolExecutor(1)
        self.block_s = block_s
        self.log: list[tuple[str, Any]] = []
        self.thread: int | None = None
        self.on_commit: Callable[[], None] = lambda: None

    def start(self, start: Start) -> tuple[MockSession, BlockFrames]:
        if start.prompt not in PROMPTS:
            raise InputError(f"this world does not know {start.prompt!r}")
        self.log.append(("start", start.seed))
        if start.picture.shape[:2] == (HEIGHT, WIDTH):
            first = start.picture
        else:
            first = np.broadcast_to(start.picture.reshape(-1, 3).mean(0).astype(np.uint8), (HEIGHT, WIDTH, 3))
        return MockSession(self, start), BlockFrames(0, np.ascontiguousarray(first)[None], {"decode": 0.001})
