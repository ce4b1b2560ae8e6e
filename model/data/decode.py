"""Frames of a stored clip at given times and size: one seek to the key frame before, nothing decoded after the last frame.

There are two decoders. `curation.media.decode` reads arbitrary files, checks every seek against them and judges damage. This
one reads short clips that curation has encoded, from memory, as fast as a data loader needs. The model may not import the other
one, so that training does not depend on the curation of footage.
"""

import io
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from model.data.buffers import borrow_array

# A frame counts as on screen from this much before its time on, since times of stored frames are rounded to 1 / 90000 s.
_TOLERANCE_S = 5e-4


class Crop(NamedTuple):
    """How stored pictures become training pictures: scaled to (width, height), then cropped at (left, top) to the size."""

    width: int
    height: int
    left: int
    top: int

    def intrinsics(self, fxfycxcy: np.ndarray, stored: tuple[int, int]) -> np.ndarray:
        """Convert intrinsics [..., 4] in px of the stored pictures to px of the training pictures."""
        scale = np.array([self.width / stored[0], self.height / stored[1]] * 2)
        return fxfycxcy * scale - np.array([0, 0, self.left, self.top])


def covering_crop(stored: tuple[int, int], size: tuple[int, int]) -> Crop:
    """Return the central crop of a size, from the smallest scaling of a stored (width, height) that covers it."""
    scale = max(size[0] / stored[0], size[1] / stored[1])
    width, height = (max(want, round(have * scale)) for want, have in zip(size, stored, strict=True))
    return Crop(width, height, (width - size[0]) // 2, (height - size[1]) // 2)


def frames_at(mp4: bytes, times_s: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures on screen at ascending times [N], uint8 [N, H, W, 3], and when each came on screen [N], s.

    size: (width, height). ValueError where the bytes cannot be decoded, or have no frame at the first time.
    """
    try:
        with cast(av.container.InputContainer, av.open(io.BytesIO(mp4))) as container:
            return _read_frames(container, np.asarray(times_s, float), size)
    except av.FFmpegError as error:
        raise ValueError(f"cannot be decoded: {error.strerror}") from error


def _read_frames(
    container: av.container.InputContainer, times_s: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # the loader has workers; more threads in each would only wait
    assert stream.time_base is not None
    if times_s[0] > 0:
        container.seek(int(times_s[0] / stream.time_base), stream=stream, backward=True)
    writer = _PictureWriter(covering_crop((stream.width, stream.height), size), size, len(times_s))
    current: tuple[av.VideoFrame, float] | None = None
    for frame in _decode_from(container, stream, times_s[0]):
        at_s = float(cast(int, frame.pts) * stream.time_base)
        while current is not None and writer.count < len(times_s) and at_s > times_s[writer.count] + _TOLERANCE_S:
            writer.add(*current)
        current = frame, at_s
        if writer.count == len(times_s):
            break
    while current is not None and writer.count < len(times_s):  # the last frame stays on screen
        writer.add(*current)
    if not writer.count or writer.stamps_s[0] > times_s[0] + _TOLERANCE_S:
        raise ValueError(f"no frame on screen at {times_s[0]:.3f} s")
    return writer.pictures, writer.stamps_s


def _decode_from(container: av.container.InputContainer, stream: av.VideoStream, from_s: float) -> Iterator[av.VideoFrame]:
    """Yield the frame on screen at from_s and all after it; before it only those from which other frames are decoded."""
    assert stream.time_base is not None
    packets, last, early = container.demux(stream), (from_s + _TOLERANCE_S) / float(stream.time_base), []
    for packet in packets:
        early.append(packet)
        if packet.dts is None or packet.dts > last:
            break
    on_screen = max((packet.pts for packet in early if packet.pts is not None and packet.pts <= last), default=0)
    for packet in chain(early, packets):
        before_window = packet.pts is not None and packet.pts < on_screen
        stream.codec_context.skip_frame = "NONREF" if before_window else "DEFAULT"
        yield from packet.decode()


class _PictureWriter:
    """Writes decoded frames as cropped pictures into one array. A frame that stays on screen is scaled once."""

    def __init__(self, crop: Crop, size: tuple[int, int], count: int) -> None:
        self._crop, self._scaler = crop, VideoReformatter()
        self.pictures = borrow_array((count, size[1], size[0], 3))
        self.stamps_s = np.empty(count)
        self.count = 0  # pictures written so far

    def add(self, frame: av.VideoFrame, at_s: float) -> None:
        """Write this frame, which came on screen at at_s, as the next picture."""
        if self.count and self.stamps_s[self.count - 1] == at_s:
            self.pictures[self.count] = self.pictures[self.count - 1]
        else:
            self._write(frame, self.pictures[self.count])
        self.stamps_s[self.count] = at_s
        self.count += 1

    def _write(self, frame: av.VideoFrame, picture: np.ndarray) -> None:
        crop, (height, width) = self._crop, picture.shape[:2]
        scaled = self._scaler.reformat(frame, crop.width, crop.height, format="rgb24", interpolation=Interpolation.AREA)
        plane = scaled.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)  # to_ndarray would copy
        cropped = rows[crop.top : crop.top + height, 3 * crop.left : 3 * (crop.left + width)]
        picture[:] = cropped.reshape(height, width, 3)
