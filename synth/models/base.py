"""The interface of models that paint, edit or animate, their prompts and their settings (paper section 3.3)."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from curation.errors import AttemptFailed
from curation.vlm import ServerSettings

MODEL_BACKENDS = ("diffusers", "http")
DTYPES = ("bfloat16", "float16", "float32")
OFFLOADS = ("none", "model", "sequential")
# Wan's autoencoder and patches take 8 x 2 px per side, and one latent per four pictures after the first.
_SIDE, _PICTURES = 16, 4


class ModelFailed(AttemptFailed):
    """A model returned nothing usable. The message says what it returned instead."""


class PromptPair(NamedTuple):
    """The prompts for one call of a model."""

    prompt: str
    negative: str = ""


class PainterModel(Protocol):
    """Makes a picture uint8 [H, W, 3] RGB from a prompt."""

    def paint(self, prompts: PromptPair, seed: int) -> np.ndarray: ...


class EditorModel(Protocol):
    """Changes a picture uint8 [H, W, 3] RGB as the prompt says. The size stays."""

    def edit(self, picture: np.ndarray, prompts: PromptPair, seed: int) -> np.ndarray: ...


class AnimatorModel(Protocol):
    """Makes a video uint8 [F, H, W, 3] RGB that begins with `first` and, if one is given, ends with `last`."""

    def animate(self, first: np.ndarray, last: np.ndarray | None, prompts: PromptPair, seed: int) -> np.ndarray: ...


@dataclass(frozen=True)
class ModelSettings:
    """Which models make videos, and how they run. A model is a name on the hub or on a server, or a folder; empty: none."""

    painter: str = ""  # text to image: paints initial frames
    editor: str = ""  # instruction editor: makes the last frame of start_end
    animator: str = ""  # image to video
    between: str = ""  # animator for start_end, which takes a first and a last frame; empty: the same as `animator`
    width: int = 832  # width of the video, px; a multiple of 16
    height: int = 480  # height of the video, px; a multiple of 16
    frames: int = 81  # length of the video in frames; 1 + a multiple of 4
    fps: float = 16.0  # frame rate of the video, 1/s
    image_steps: int = 40  # denoising steps for a picture
    video_steps: int = 40  # denoising steps for a video
    guidance: float | None = None  # guidance scale; null: the default of each pipeline
    dtype: str = "bfloat16"  # number type of the weights: bfloat16, float16 or float32
    offload: str = "model"  # what stays in main memory until it runs: none, model (a whole network) or sequential (a layer)
    device: str = ""  # torch device; empty: CUDA if there is a GPU, else the processor
    timeout_s: float = 3600.0  # largest time for one call of a model, s
    server: ServerSettings = field(default_factory=ServerSettings)  # the server of the backend http

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
