"""Models that paint, edit and animate, each behind one method, chosen by name (paper section 3.3).

    Painter.paint      a text becomes a picture        Qwen-Image, FLUX, HunyuanImage class
    Editor.edit        a picture and an instruction    Qwen-Image-Edit, FLUX Kontext class
    Animator.animate   a first frame, and for start_end a last one, become a video        Wan 2.x I2V and FLF2V class

`diffusers` runs pipelines in this process, `http` asks a server (`synth.http`). What comes back is checked here, whoever made
it: a model that takes too long, or gives NaN or the wrong size, is a `NotMade` with its reason; what it throws is passed on.
"""

import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np

from curation import weights
from curation.vlm import ServerSettings

T = TypeVar("T")
KINDS = ("diffusers", "http")
DTYPES = ("bfloat16", "float16", "float32")
OFFLOADS = ("none", "model", "sequential")
# Wan's autoencoder and patches: 8 x 2 px a side, and one latent for four pictures behind the first.
_SIDE, _PICTURES = 16, 4
_SAME_SHAPE = 0.03


class NotMade(RuntimeError):
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


@dataclass(frozen=True)
class Models:
    """The models of a recipe; each is loaded when it is first used."""

    kind: str
    how: ModelSettings

    def paint(self, words: Words, seed: int) -> np.ndarray:
        """A picture of the recipe's size."""
        painter = self._model("painter", self.how.painter)
        return self._picture(self.how.painter, lambda: painter.paint(words, seed))

    def edit(self, picture: np.ndarray, words: Words, seed: int) -> np.ndarray:
        """The picture, changed as the words say."""
        editor = self._model("editor", self.how.editor)
        return self._picture(self.how.editor, lambda: editor.edit(picture, words, seed))

    def animate(self, first: np.ndarray, last: np.ndarray | None, words: Words, seed: int) -> np.ndarray:
        """A video of the recipe's size and length."""
        name = self.animator(last is not None)
        animator = self._model("animator", name)
        video = _within(self.how.timeout_s, name, lambda: animator.animate(first, last, words, seed))
        return checked(video, (self.how.frames, self.how.height, self.how.width, 3), name)

    def animator(self, with_last: bool) -> str:
        """The name of the model that animates."""
        return (self.how.between if with_last else "") or self.how.animator

    def _picture(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """A picture of the video's size; painters and editors that choose a size of their own may, if its shape is the same."""
        picture, size = _within(self.how.timeout_s, name, make), (self.how.width, self.how.height)
        if picture.ndim == 3 and _alike(picture.shape[1] / picture.shape[0], size[0] / size[1]):
            picture = cv2.resize(checked(picture, picture.shape, name), size, interpolation=cv2.INTER_AREA)
        return checked(picture, (size[1], size[0], 3), name)

    def _model(self, role: str, name: str) -> Any:
        if not name:
            raise ValueError(f"synth.models.{role} is not set: name a model of the hub or of the server, or a folder")
        if self.kind == "http":
            from synth.http import HttpModel

            return HttpModel(name, self.how)
        return _loaded(name, self.how)


def checked(pictures: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Pictures of exactly this shape as uint8; floats are 0 to 1. NotMade for NaN, another shape or another type."""
    pictures = np.asarray(pictures)
    if pictures.shape != shape:
        raise NotMade(f"{name} gave {_size(pictures.shape)} instead of {_size(shape)}")
    if pictures.dtype == np.uint8:
        return pictures
    if not np.issubdtype(pictures.dtype, np.floating):
        raise NotMade(f"{name} gave {pictures.dtype} instead of uint8 or floats")
    if bad := int((~np.isfinite(pictures)).any(axis=-1).sum()):
        raise NotMade(f"{name} gave NaN or infinity in {bad} of {pictures[..., 0].size} pixels")
    return np.asarray(np.rint(np.clip(pictures, 0, 1) * 255), np.uint8)


def _alike(ours: float, theirs: float) -> bool:
    """Whether two shapes (width over height) are the same to the eye."""
    return abs(ours / theirs - 1) < _SAME_SHAPE


def _size(shape: tuple[int, ...]) -> str:
    """The words for a shape: frames, then width x height."""
    if len(shape) not in (3, 4):
        return f"an array of shape {shape}"
    size = f"{shape[-2]}x{shape[-3]}"
    return f"{shape[0]} pictures of {size}" if len(shape) == 4 else f"a picture of {size}"


def _within(seconds: float, name: str, make: Callable[[], T]) -> T:
    """What `make` gives, in time. A call that hangs cannot be stopped: its thread is left, its model loaded anew."""
    found: list[T] = []
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            found.append(make())
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=run, daemon=True, name=f"gamecraft {name}")
    thread.start()
    thread.join(seconds)
    if trouble:
        raise trouble[0]
    if not found:
        _loaded.cache_clear()
        raise NotMade(f"{name} gave nothing within {seconds:g} s")
    return found[0]


@lru_cache(maxsize=4)
def _loaded(name: str, how: ModelSettings) -> "DiffusersModel":
    """A pipeline, loaded once a process."""
    return DiffusersModel(name, how)


class DiffusersModel:
    """Any pipeline of diffusers, by the name or folder that `DiffusionPipeline.from_pretrained` takes.

    It is given those of the arguments below that its own `__call__` knows. Draws come from a generator on the processor, so
    that a seed means the same on every device.
    """

    def __init__(self, name: str, how: ModelSettings) -> None:
        try:
            import torch
            from diffusers import DiffusionPipeline
            from diffusers.utils import logging
            from transformers.utils import logging as inner_logging
        except ImportError as error:
            # no attempt's fault, so an OSError: the unit is left for a run that has what it needs
            raise OSError(f'synth.backend diffusers needs {error.name}; pip install "gamecraft[synth]"') from error
        self.name, self._how = name, how
        for bars in (logging, inner_logging):
            bars.disable_progress_bar()
        with weights.named_if_missing(name):
            self._pipe = DiffusionPipeline.from_pretrained(weights.model_folder(name), torch_dtype=getattr(torch, how.dtype))
        self._pipe.set_progress_bar_config(disable=True)
        self._place(how.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._takes = frozenset(inspect.signature(self._pipe.__call__).parameters)

    def _place(self, device: str) -> None:
        if device == "cpu" or self._how.offload == "none":
            self._pipe.to(device)
        elif self._how.offload == "model":
            self._pipe.enable_model_cpu_offload(device=device)
        else:
            self._pipe.enable_sequential_cpu_offload(device=device)

    def paint(self, words: Words, seed: int) -> np.ndarray:
        """A picture from words."""
        return np.asarray(self._called(words, seed, self._how.image_steps).images[0])

    def edit(self, picture: np.ndarray, words: Words, seed: int) -> np.ndarray:
        """A picture changed as the words say."""
        self._require("image", "edits no picture: use an instruction editor, such as Qwen/Qwen-Image-Edit")
        return np.asarray(self._called(words, seed, self._how.image_steps, image=_pil(picture)).images[0])

    def animate(self, first: np.ndarray, last: np.ndarray | None, words: Words, seed: int) -> np.ndarray:
        """A video from its first frame, and its last where one is given."""
        self._require("image", "takes no first frame: use an image-to-video model, such as Wan-AI/Wan2.2-I2V-A14B-Diffusers")
        given = {"image": _pil(first)}
        if last is not None:
            self._require(
                "last_image", "takes no last frame: set synth.models.between, as to Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"
            )
            given["last_image"] = _pil(last)
        made = self._called(words, seed, self._how.video_steps, num_frames=self._how.frames, **given)
        return np.asarray(made.frames[0])

    def _called(self, words: Words, seed: int, steps: int, **given: Any) -> Any:
        import torch

        how = self._how
        size: dict[str, Any] = {"width": how.width, "height": how.height, "num_inference_steps": steps, "output_type": "np"}
        told = {"prompt": words.prompt, "negative_prompt": words.negative or None, **self._guidance()}
        # Kontext chooses a size of about a megapixel by itself unless it is told otherwise.
        size |= {"max_area": how.width * how.height, "_auto_resize": False}
        asked: Mapping[str, Any] = {**size, **told, **given, "generator": torch.Generator("cpu").manual_seed(seed)}
        with torch.inference_mode():
            return self._pipe(**{name: value for name, value in asked.items() if name in self._takes and value is not None})

    def _guidance(self) -> dict[str, float | None]:
        """Pipelines with distilled guidance (Qwen-Image, FLUX) call the classifier-free kind `true_cfg_scale`."""
        return {"true_cfg_scale" if "true_cfg_scale" in self._takes else "guidance_scale": self._how.guidance}

    def _require(self, argument: str, otherwise: str) -> None:
        if argument not in self._takes:
            raise ValueError(f"{self.name} ({type(self._pipe).__name__}) {otherwise}")


def _pil(rgb: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(rgb)
