"""Service levels of a stream of frames: time to the first chunk, deadlines, and what a viewer sees stall.

A stream is the times at which chunks of frames arrive at the viewer, in s from the request. Nothing here reads a clock.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.evaluation.general.metric import Metric

FIRST_CHUNK = Metric("Time to first chunk", "s", "down", "From the request to the arrival of the first chunk.", "")
DEADLINES = Metric(
    "Deadline attainment",
    "share",
    "up",
    "Share of steady chunks that arrive before the viewer has shown all frames that came before them.",
    "Steady: without the first chunks, until the context window of the model is full.",
)
UNDERRUNS = Metric(
    "Underruns",
    "per minute",
    "down",
    "How often a viewer who starts after a buffer of so many frames runs out of frames, per minute of video.",
    "",
)


class Chunk(NamedTuple):
    """Some frames that arrive together. arrival_s: from the request."""

    arrival_s: float
    frames: int


class Viewing(NamedTuple):
    """What a viewer sees. stalls: how often the buffer runs dry. stalled_s: for how long in all."""

    stalls: int
    stalled_s: float
    video_s: float

    @property
    def stalls_per_minute(self) -> float:
        return 60 * self.stalls / self.video_s if self.video_s else float("nan")


class ServiceLevels(NamedTuple):
    """Service levels of a stream. Percentiles: of steady gaps between chunks, s. rtf: seconds of work per second of video."""

    first_chunk_s: float
    gap_p50_s: float
    gap_p95_s: float
    gap_p99_s: float
    rtf: float
    deadline_attainment: float
    viewing: Viewing
    steady_fps: float


def service_levels(chunks: Sequence[Chunk], fps: float, warm_up: int = 0, buffer_frames: int = 0) -> ServiceLevels:
    """Return the service levels of a stream that is shown at `fps`.

    warm_up: chunks after the first that do not count as steady, until the model's window is full. buffer_frames: frames that
    the viewer waits for before the first is shown. ValueError for no chunk or times that run backwards.
    """
    arrivals = np.array([chunk.arrival_s for chunk in chunks], float)
    frames = np.array([chunk.frames for chunk in chunks], int)
    if not len(chunks) or (np.diff(arrivals) < 0).any() or (frames < 1).any():
        raise ValueError("a stream needs chunks of at least one frame, in order of arrival")
    gaps, made = np.diff(arrivals)[warm_up:], frames[1:][warm_up:]
    steady = bool(len(gaps))
    nan = float("nan")
    p50, p95, p99 = (float(v) for v in np.percentile(gaps, (50, 95, 99))) if steady else (nan, nan, nan)
    deadlines = gaps <= frames[:-1][warm_up:] / fps + 1e-9
    return ServiceLevels(
        float(arrivals[0]),
        p50,
        p95,
        p99,
        float(gaps.sum() / (made.sum() / fps)) if steady else nan,
        float(deadlines.mean()) if steady else nan,
        watch(chunks, fps, buffer_frames),
        float(made.sum() / gaps.sum()) if steady and gaps.sum() > 0 else nan,
    )


def watch(chunks: Sequence[Chunk], fps: float, buffer_frames: int = 0) -> Viewing:
    """Simulate a viewer: the picture starts once more than `buffer_frames` frames are there, and stops where the next is late.

    After a stall it goes on with the frame that it waited for.
    """
    due = [chunk.arrival_s for chunk in chunks for _ in range(chunk.frames)]
    start = due[min(buffer_frames, len(due) - 1)]
    stalls, stalled_s, clock = 0, 0.0, start
    for number, arrival in enumerate(due):
        if number and arrival > clock + 1e-9:
            stalls, stalled_s = stalls + 1, stalled_s + arrival - clock
            clock = arrival
        clock += 1 / fps
    return Viewing(stalls, stalled_s, len(due) / fps)
