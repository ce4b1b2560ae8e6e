"""Read the videos that are evaluated.

F frames, H W px.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from curation.errors import UnreadableVideo
from curation.media import decode
from curation.media.decode import Span
from curation.media.source import probe


class Video(NamedTuple):
    """Frames uint8 [F, H, W, 3] RGB, their times [F] in s from the first, and frames a second."""

    rgb: np.ndarray
    times_s: np.ndarray
    fps: float


@lru_cache(maxsize=64)
def frame_times(uri: str) -> tuple[float, ...]:
    """Return the times of a video's frames, s from the first. UnreadableVideo where there is none."""
    times = tuple(time_s for time_s, _ in decode.decode(uri, purpose="evaluate"))
    if not times:
        raise UnreadableVideo(f"{uri}: no frame could be decoded")
    return times


def frame_rate(uri: str) -> float:
    """Return frames a second: one by the median step of time. 1 for a single frame."""
    times = frame_times(uri)
    return float(1 / np.median(np.diff(times))) if len(times) > 1 else 1.0


def duration_s(uri: str) -> float:
    """Return how long a video is shown, s: until the end of its last frame."""
    return frame_times(uri)[-1] + 1 / frame_rate(uri)


def read_video(uri: str, fps: float | None = None, size: tuple[int, int] | None = None) -> Video:
    """Return a video's frames, all of them or at `fps`, as they are or scaled to `size` (width, height)."""
    source = probe(uri)
    frames = decode.read_frames(uri, Span(0.0, duration_s(uri)), fps, size or (source.width, source.height))
    if not len(frames.rgb):
        raise UnreadableVideo(f"{uri}: no frame could be decoded")
    return Video(frames.rgb, frames.times_s, fps or frame_rate(uri))


def fitted_size(uri: str, width: int) -> tuple[int, int]:
    """Return the size (width, height) of a video that is scaled to at most a width, with its aspect ratio."""
    source = probe(uri)
    scale = min(1.0, width / source.width)
    return max(1, round(source.width * scale)), max(1, round(source.height * scale))
