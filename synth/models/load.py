"""Models that paint, edit and animate, each behind one method, chosen by name (paper section 3.3).

    PainterModel.paint      a text becomes a picture        Qwen-Image, FLUX, HunyuanImage class
    EditorModel.edit        a picture and an instruction    Qwen-Image-Edit, FLUX Kontext class
    AnimatorModel.animate   a first frame, and for start_end a last one, become a video        Wan 2.x I2V and FLF2V class

`diffusers` runs pipelines in this process, `http` calls a server (`synth.models.http_backend`). Results of both are checked
here: a model that takes too long, or returns NaN or the wrong size, raises `ModelFailed` with the reason. An exception of the
model itself is passed on.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import cv2
import numpy as np

from curation.errors import InputError
from synth.models.base import ModelFailed, ModelSettings, PromptPair
from synth.models.diffusers_backend import DiffusersModel

T = TypeVar("T")
# Aspect ratios that differ by less than this share count as equal.
_ASPECT_TOLERANCE = 0.03


@dataclass(frozen=True)
class Models:
    """The models of a recipe. Each is loaded when it is first used."""

    backend: str  # diffusers or http
    settings: ModelSettings

    def paint(self, prompts: PromptPair, seed: int) -> np.ndarray:
        """Return a picture of the recipe's size."""
        painter = self._model("painter", self.settings.painter)
        return self._picture(self.settings.painter, lambda: painter.paint(prompts, seed))

    def edit(self, picture: np.ndarray, prompts: PromptPair, seed: int) -> np.ndarray:
        """Return the picture, changed as the prompt says."""
        editor = self._model("editor", self.settings.editor)
        return self._picture(self.settings.editor, lambda: editor.edit(picture, prompts, seed))

    def animate(self, first: np.ndarray, last: np.ndarray | None, prompts: PromptPair, seed: int) -> np.ndarray:
        """Return a video of the recipe's size and length."""
        name = self.animator(last is not None)
        animator = self._model("animator", name)
        video = _call_within(self.settings.timeout_s, name, lambda: animator.animate(first, last, prompts, seed))
        return as_uint8(video, (self.settings.frames, self.settings.height, self.settings.width, 3), name)

    def animator(self, with_last: bool) -> str:
        """Return the name of the model that animates."""
        return (self.settings.between if with_last else "") or self.settings.animator

    def _picture(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Make a picture of the video's size. A model may return another size of the same aspect ratio, which is resized."""
        picture, size = _call_within(self.settings.timeout_s, name, make), (self.settings.width, self.settings.height)
        if picture.ndim == 3 and _same_aspect(picture.shape[1] / picture.shape[0], size[0] / size[1]):
            picture = cv2.resize(as_uint8(picture, picture.shape, name), size, interpolation=cv2.INTER_AREA)
        return as_uint8(picture, (size[1], size[0], 3), name)

    def _model(self, role: str, name: str) -> Any:
        if not name:
            raise InputError(f"synth.models.{role} is not set: name a model of the hub or of the server, or a folder")
        if self.backend == "http":
            from synth.models.http_backend import HttpModel

            return HttpModel(name, self.settings)
        return _load_pipeline(name, self.settings)


def as_uint8(pictures: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return pictures of exactly this shape as uint8. Floats are 0 to 1. Raises ModelFailed for NaN, another shape or type."""
    pictures = np.asarray(pictures)
    if pictures.shape != shape:
        raise ModelFailed(f"{name} gave {_describe_shape(pictures.shape)} instead of {_describe_shape(shape)}")
    if pictures.dtype == np.uint8:
        return pictures
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ModelFailed(f"{name} gave {pictures.dtype} instead of uint8 or floats")
    if bad := int((~np.isfinite(pictures)).any(axis=-1).sum()):
        raise ModelFailed(f"{name} gave NaN or infinity in {bad} of {pictures[..., 0].size} pixels")
    return np.asarray(np.rint(np.clip(pictures, 0, 1) * 255), np.uint8)


def _same_aspect(ours: float, theirs: float) -> bool:
    """Whether two aspect ratios (width over height) look the same."""
    return abs(ours / theirs - 1) < _ASPECT_TOLERANCE


def _describe_shape(shape: tuple[int, ...]) -> str:
    """Describe a shape in words: frames, then width x height."""
    if len(shape) not in (3, 4):
        return f"an array of shape {shape}"
    size = f"{shape[-2]}x{shape[-3]}"
    return f"{shape[0]} pictures of {size}" if len(shape) == 4 else f"a picture of {size}"


def _call_within(seconds: float, name: str, make: Callable[[], T]) -> T:
    """Call `make`, and raise ModelFailed if it takes too long.

    A call that hangs cannot be stopped: its thread is abandoned, and the model is loaded again for the next call.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(make())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name=f"gamecraft {name}")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        _load_pipeline.cache_clear()
        raise ModelFailed(f"{name} gave nothing within {seconds:g} s")
    return results[0]


@lru_cache(maxsize=4)
def _load_pipeline(name: str, settings: ModelSettings) -> DiffusersModel:
    """Load a pipeline, once per process."""
    return DiffusersModel(name, settings)
