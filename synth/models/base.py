"""What a model that paints, edits or animates must offer, its settings, and what it is asked (paper section 3.3)."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from curation.errors import AttemptFailed
from curation.vlm import ServerSettings

KINDS = ("diffusers", "http")


DTYPES = ("bfloat16", "float16", "float32")


OFFLOADS = ("none", "model", "sequential")


# Wan's autoencoder and patches: 8 x 2 px a side, and one latent for four pictures behind the first.
_SIDE, _PICTURES = 16, 4


class NotMade(AttemptFailed):
    """A model gave nothing that can be used; the message says what it did instead."""


class Words(NamedTuple):
    """What a model is told."""

    prompt: str
    negative: str = ""


class Painter(Protocol):
    """A picture uint8 [H, W, 3] RGB from words."""

    def paint(self, words: Words, seed: int) -> np.ndarray: ...


class Editor(Protocol):
    """A picture uint8 [H, W, 3] RGB, changed as the words say, of the same size."""

    def edit(self, picture: np.ndarray, words: Words, seed: int) -> np.ndarray: ...


class Animator(Protocol):
    """A video uint8 [F, H, W, 3] RGB that begins with `first` and, where one is given, ends with `last`."""

    def animate(self, first: np.ndarray, last: np.ndarray | None, words: Words, seed: int) -> np.ndarray: ...


@dataclass(frozen=True)
class ModelSettings:
    """Which models, and how they run. Names are those of the hub or of a server, or folders; an empty one is not there.

    painter, editor, animator; between: an animator for start_end that takes a last frame (empty: the same). width, height,
    frames, fps: of the video. image_steps, video_steps: of denoising. guidance: null leaves each pipeline's own. dtype, offload
    (none, model, sequential: what waits in main memory), device (empty: CUDA where there is some). timeout_s: of one call.
    server: for the backend http.
    """

    painter: str = ""
    editor: str = ""
    animator: str = ""
    between: str = ""
    width: int = 832
    height: int = 480
    frames: int = 81
    fps: float = 16.0
    image_steps: int = 40
    video_steps: int = 40
    guidance: float | None = None
    dtype: str = "bfloat16"
    offload: str = "model"
    device: str = ""
    timeout_s: float = 3600.0
    server: ServerSettings = field(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("offload", OFFLOADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("width", "height"):
            if getattr(self, name) < _SIDE or getattr(self, name) % _SIDE:
                raise ValueError(f"{name} must be a multiple of {_SIDE}, not {getattr(self, name)}")
        if self.frames < 5 or self.frames % _PICTURES != 1:
            raise ValueError(f"frames must be 1 + a multiple of {_PICTURES}, at least 5, not {self.frames}")
        if not (self.fps > 0 and self.timeout_s > 0 and self.image_steps > 0 and self.video_steps > 0):
            raise ValueError("fps, timeout_s, image_steps and video_steps must be positive")
