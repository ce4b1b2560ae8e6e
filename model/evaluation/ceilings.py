"""Ceilings of a measure: real videos as they are, coded once more, and as their first frame repeated.

What a measure says of these bounds what it can say of a model. Coding alone costs what the second row shows. A still picture is
best at every measure that rewards only calm.
"""

import io
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from curation.media.encode import CLOCK, Encoding, encode_frames
from model.evaluation.videos import Video

CEILINGS = {"real": "real", "coded": "real, coded again", "frozen": "real, first frame repeated"}
CRF = 23


def variant(video: Video, kind: str) -> Video:
    """Return a video as it is, coded once more (H.264, CRF 23), or as its first frame repeated."""
    if kind == "real":
        return video
    if kind == "frozen":
        return video._replace(rgb=np.repeat(video.rgb[:1], len(video.rgb), 0))
    return video._replace(rgb=_coded(video))


def to_h264(video: Video) -> bytes:
    """Return a video as MP4 (H.264, CRF 23). An odd last row or column is repeated."""
    height, width = video.rgb.shape[1:3]
    even = np.pad(video.rgb, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = even.shape[2], even.shape[1]
    encoding = Encoding(max_width=size[0], max_height=size[1], fps=video.fps, crf=CRF)
    return encode_frames(_stamped(even, video.fps), size, video.fps, encoding)[0]


def _coded(video: Video) -> np.ndarray:
    frames, height, width = video.rgb.shape[:3]
    with av.open(io.BytesIO(to_h264(video)), "r") as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(decoded[:frames])[:, :height, :width]


def _stamped(rgb: np.ndarray, fps: float) -> Iterator[av.VideoFrame]:
    for number, picture in enumerate(rgb):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = round(number / fps * CLOCK), Fraction(1, CLOCK)
        yield frame
