"""Divide a source at gaps in presentation time, where it has no frames. Pure functions.

A recorder that writes nothing while nothing changes, a stream that reconnects, a clock that jumps: presentation time continues
and frames do not. Time without frames is not footage. So a gap ends a scene and every signal, no clip covers it, and no work
is done for it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MIN_GAP_S = 1.0
"""Seconds from one frame to the next above which there is a gap; or twice a source's own step, if that is more."""

# A source slower than this has no meaningful rate: it is a slide show, or a few frames between gaps.
_MAX_STEP_S = 2.0
_FALLBACK_FPS = 30.0
# Sums of seconds such as 0.7 + 0.1 miss a time by less.
_SAME_S = 1e-6
# How many gaps a note lists; the others are counted.
_MAX_LISTED = 3


class Segment(NamedTuple):
    """Frames [first, last) without a gap between them, displayed in seconds [start_s, end_s)."""

    first: int
    last: int
    start_s: float
    end_s: float


def frame_step(times_s: np.ndarray, declared_fps: float | None) -> float:
    """Return how long a frame is displayed, in seconds: the median step between frames [N] that have no gap between them."""
    steps_s = np.diff(times_s)
    steps_s = steps_s[steps_s <= _MAX_STEP_S]
    return float(np.median(steps_s)) if len(steps_s) else min(1 / (declared_fps or _FALLBACK_FPS), MIN_GAP_S)


def split_at_gaps(times_s: np.ndarray, step_s: float) -> list[Segment]:
    """Divide frames at increasing times [N], N >= 1, at the gaps. The last frame of a segment is displayed for one step."""
    after = 1 + np.flatnonzero(np.diff(times_s) > max(MIN_GAP_S, 2 * step_s) + _SAME_S)
    return [
        Segment(first, last, float(times_s[first]), float(times_s[last - 1]) + step_s)
        for first, last in pairwise([0, *after.tolist(), len(times_s)])
    ]


def gaps(segments: Sequence[Segment]) -> Iterator[tuple[float, float]]:
    """Yield start and length in seconds of each gap between segments."""
    for before, after in pairwise(segments):
        yield before.end_s, after.start_s - before.end_s


def describe_gaps(segments: Sequence[Segment]) -> str | None:
    """Say where frames are missing, the longest gap first; None where there is no gap."""
    by_length = sorted(gaps(segments), key=lambda gap: -gap[1])
    if not by_length:
        return None
    words = [f"no frame for {_plain(length_s)} s at {start_s:.1f} s" for start_s, length_s in by_length[:_MAX_LISTED]]
    if others := by_length[_MAX_LISTED:]:
        words.append(f"{len(others)} more gaps of {_plain(sum(length_s for _, length_s in others))} s together")
    return ", ".join(words)


def _plain(seconds: float) -> str:
    return f"{seconds:.2f}".rstrip("0").rstrip(".")
