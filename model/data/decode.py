"""Frames of a stored clip at a rate and a size: one seek to the key frame before, nothing decoded behind the last frame."""

import io
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from model.data.buffers import borrowed

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
    painter = _Painter(cover((stream.width, stream.height), size), size, len(times_s))
    held: tuple[av.VideoFrame, float] | None = None
    for frame in _decoded(container, stream, times_s[0]):
        at_s = float(cast(int, frame.pts) * stream.time_base)
        while held is not None and painter.due < len(times_s) and at_s > times_s[painter.due] + _SAME_S:
            painter.show(*held)
        held = frame, at_s
        if painter.due == len(times_s):
            break
    while held is not None and painter.due < len(times_s):  # the last frame stays on screen
        painter.show(*held)
    if not painter.due or painter.stamps_s[0] > times_s[0] + _SAME_S:
        raise ValueError(f"no frame on screen at {times_s[0]:.3f} s")
    return painter.pictures, painter.stamps_s


def _decoded(container: av.container.InputContainer, stream: av.VideoStream, from_s: float) -> Iterator[av.VideoFrame]:
    """The frame on screen at from_s and all behind it; before it only those that others are made from."""
    assert stream.time_base is not None
    packets, last, early = container.demux(stream), (from_s + _SAME_S) / float(stream.time_base), []
    for packet in packets:
        early.append(packet)
        if packet.dts is None or packet.dts > last:
            break
    on_screen = max((packet.pts for packet in early if packet.pts is not None and packet.pts <= last), default=0)
    for packet in chain(early, packets):
        passed_over = packet.pts is not None and packet.pts < on_screen
        stream.codec_context.skip_frame = "NONREF" if passed_over else "DEFAULT"
        yield from packet.decode()


class _Painter:
    """Decoded frames as cut pictures, one after another in one array; a frame that stays on screen is scaled once."""

    def __init__(self, crop: Crop, size: tuple[int, int], count: int) -> None:
        self._crop, self._scaler = crop, VideoReformatter()
        self.pictures = borrowed((count, size[1], size[0], 3))
        self.stamps_s = np.empty(count)
        self.due = 0

    def show(self, frame: av.VideoFrame, at_s: float) -> None:
        """The next picture is this frame, which came on screen at at_s."""
        if self.due and self.stamps_s[self.due - 1] == at_s:
            self.pictures[self.due] = self.pictures[self.due - 1]
        else:
            self._paint(frame, self.pictures[self.due])
        self.stamps_s[self.due] = at_s
        self.due += 1

    def _paint(self, frame: av.VideoFrame, picture: np.ndarray) -> None:
        crop, (height, width) = self._crop, picture.shape[:2]
        scaled = self._scaler.reformat(frame, crop.width, crop.height, format="rgb24", interpolation=Interpolation.AREA)
        plane = scaled.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)  # to_ndarray would copy
        inside = rows[crop.top : crop.top + height, 3 * crop.left : 3 * (crop.left + width)]
        picture[:] = inside.reshape(height, width, 3)
