"""Models that paint, edit and animate, each behind one method, chosen by name (paper section 3.3).

    Painter.paint      a text becomes a picture        Qwen-Image, FLUX, HunyuanImage class
    Editor.edit        a picture and an instruction    Qwen-Image-Edit, FLUX Kontext class
    Animator.animate   a first frame, and for start_end a last one, become a video        Wan 2.x I2V and FLF2V class

`diffusers` runs pipelines in this process, `http` calls a server (`synth.models.http_backend`). The result is checked here,
whichever backend made it: a model that takes too long, or gives NaN or the wrong size, raises `NotMade` with the reason. What
the model itself raises is passed on.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import cv2
import numpy as np

from synth.models.base import ModelSettings, NotMade, Words
from synth.models.diffusers_backend import DiffusersModel

T = TypeVar("T")
_SAME_SHAPE = 0.03


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
            from synth.models.http_backend import HttpModel

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
def _loaded(name: str, how: ModelSettings) -> DiffusersModel:
    """A pipeline, loaded once a process."""
    return DiffusersModel(name, how)
