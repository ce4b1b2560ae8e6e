"""Encode and decode pictures in memory: PNG and JPEG for pictures, mp4 for videos that models made."""

from collections.abc import Iterator
from fractions import Fraction

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace

from curation.media.encode import CLOCK, Encoding, encode_frames

# Nearly lossless, because a shard encodes the video once more.
MASTER_CRF = 10


def to_mp4(pictures_FHW3: np.ndarray, fps: float) -> bytes:
    """Encode pictures uint8 [F, H, W, 3] RGB as an mp4 of even size. Equal pictures give equal bytes."""
    height, width = (side // 2 * 2 for side in pictures_FHW3.shape[1:3])
    encoding = Encoding(max_width=width, max_height=height, fps=fps, crf=MASTER_CRF)
    mp4, _ = encode_frames(_video_frames(pictures_FHW3[:, :height, :width], fps), (width, height), fps, encoding)
    return mp4


def _video_frames(pictures_FHW3: np.ndarray, fps: float) -> Iterator[av.VideoFrame]:
    for number, picture in enumerate(pictures_FHW3):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601)
        frame.pts, frame.time_base = round(number / fps * CLOCK), Fraction(1, CLOCK)
        yield frame


def to_png(rgb: np.ndarray) -> bytes:
    """Encode a picture uint8 [H, W, 3] RGB as PNG."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(rgb[:, :, ::-1]))
    assert ok, rgb.shape
    return bytes(data)


def decode_picture(data: bytes) -> np.ndarray | None:
    """Decode a picture file of any common format to uint8 [H, W, 3] RGB; None if it is not a picture."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if bgr is None else np.ascontiguousarray(bgr[:, :, ::-1])
