"""Frames of a stored clip at a rate and a size: one seek to the key frame before, nothing decoded behind the last frame."""

import io
from typing import NamedTuple, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

# A tick shows the frame on screen; stamps of stored frames are rounded to 1 / 90000 s.
_SAME_S = 5e-4


class Crop(NamedTuple):
    """How stored pictures become training pictures: scaled to (width, height), then cut at (left, top) to the asked size."""

    width: int
    height: int
    left: int
    top: int

    def intrinsics(self, fxfycxcy: np.ndarray, stored: tuple[int, int]) -> np.ndarray:
        """Intrinsics [..., 4] in px of the training pictures."""
        scale = np.array([self.width / stored[0], self.height / stored[1]] * 2)
        return fxfycxcy * scale - np.array([0, 0, self.left, self.top])


def cover(stored: tuple[int, int], size: tuple[int, int]) -> Crop:
    """The smallest scaling of a stored (width, height) that covers a size, and the middle of it."""
    scale = max(size[0] / stored[0], size[1] / stored[1])
    width, height = (max(want, round(have * scale)) for want, have in zip(size, stored, strict=True))
    return Crop(width, height, (width - size[0]) // 2, (height - size[1]) // 2)


def frames_at(mp4: bytes, times_s: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, H, W, 3] on screen at ascending times [N], and the times at which they came on screen [N].

    size: (width, height). ValueError for bytes in which the times have no frame.
    """
    try:
        with cast(av.container.InputContainer, av.open(io.BytesIO(mp4))) as container:
            return _shown(container, np.asarray(times_s, float), size)
    except av.FFmpegError as error:
        raise ValueError(f"cannot be decoded: {error.strerror}") from error


def _shown(container: av.container.InputContainer, times_s: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # the loader has workers; a decoder with threads beside them only waits
    assert stream.time_base is not None
    if times_s[0] > 0:
        container.seek(int(times_s[0] / stream.time_base), stream=stream, backward=True)
    crop = cover((stream.width, stream.height), size)
    pictures, stamps, painter = [], [], _Painter(crop, size)
    held, due = None, 0
    for frame in container.decode(stream):
        at_s = float(cast(int, frame.pts) * stream.time_base)
        while due < len(times_s) and held is not None and at_s > times_s[due] + _SAME_S:
            pictures.append(painter(*held))
            stamps.append(held[1])
            due += 1
        held = frame, at_s
        if due == len(times_s):
            break
    while held is not None and due < len(times_s):  # the last frame stays on screen
        pictures.append(painter(*held))
        stamps.append(held[1])
        due += 1
    if not pictures or stamps[0] > times_s[0] + _SAME_S:
        raise ValueError(f"no frame on screen at {times_s[0]:.3f} s")
    return np.stack(pictures), np.array(stamps)


class _Painter:
    """Decoded frames as cut pictures; a frame that stays on screen for several ticks is scaled once."""

    def __init__(self, crop: Crop, size: tuple[int, int]) -> None:
        self._crop, self._size, self._scaler = crop, size, VideoReformatter()
        self._last: tuple[float, np.ndarray] | None = None

    def __call__(self, frame: av.VideoFrame, at_s: float) -> np.ndarray:
        if self._last is None or self._last[0] != at_s:
            crop, (width, height) = self._crop, self._size
            scaled = self._scaler.reformat(frame, crop.width, crop.height, format="rgb24", interpolation=Interpolation.AREA)
            picture = scaled.to_ndarray()[crop.top : crop.top + height, crop.left : crop.left + width]
            self._last = at_s, np.ascontiguousarray(picture)
        return self._last[1]
