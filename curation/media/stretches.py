"""Where a source has frames: its stretches, and the holes in presentation time between them; all pure.

A recorder that writes nothing while nothing changes, a stream that connects again, a clock that jumps: presentation time goes
on, frames do not. Time without frames is not footage. So a hole ends a scene and every signal, no clip covers it, and no work
is done for it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

HOLE_S = 1.0
"""Seconds from one frame to the next beyond which there is a hole between them; twice a source's own step, if that is more."""

# A source that is slower than this has no rate of its own: it is a slide show, or a few frames between holes.
_SLOWEST_STEP_S = 2.0
_FALLBACK_FPS = 30.0
# Sums of seconds such as 0.7 + 0.1 miss a time by less.
_SAME_S = 1e-6
# How many holes a note names; the others are counted.
_NAMED = 3


class Stretch(NamedTuple):
    """Frames [first, last) without a hole between them, shown in seconds [start_s, end_s)."""

    first: int
    last: int
    start_s: float
    end_s: float


def frame_step(times_s: np.ndarray, declared_fps: float | None) -> float:
    """Return how long a frame is shown, in seconds: the median step between frames [N] that have no hole between them."""
    steps_s = np.diff(times_s)
    steps_s = steps_s[steps_s <= _SLOWEST_STEP_S]
    return float(np.median(steps_s)) if len(steps_s) else min(1 / (declared_fps or _FALLBACK_FPS), HOLE_S)


def stretches(times_s: np.ndarray, step_s: float) -> list[Stretch]:
    """Divide frames at increasing times [N], N >= 1, at the holes. The last frame of a stretch is shown for one step."""
    after = 1 + np.flatnonzero(np.diff(times_s) > max(HOLE_S, 2 * step_s) + _SAME_S)
    return [
        Stretch(first, last, float(times_s[first]), float(times_s[last - 1]) + step_s)
        for first, last in pairwise([0, *after.tolist(), len(times_s)])
    ]


def holes(parts: Sequence[Stretch]) -> Iterator[tuple[float, float]]:
    """Start and length in seconds of each hole between stretches."""
    for one, other in pairwise(parts):
        yield one.end_s, other.start_s - one.end_s


def note(parts: Sequence[Stretch]) -> str | None:
    """Say where frames are missing, the longest hole first; None where they are not."""
    found = sorted(holes(parts), key=lambda hole: -hole[1])
    if not found:
        return None
    words = [f"no frame for {_plain(length_s)} s at {start_s:.1f} s" for start_s, length_s in found[:_NAMED]]
    if rest := found[_NAMED:]:
        words.append(f"{len(rest)} more holes of {_plain(sum(length_s for _, length_s in rest))} s together")
    return ", ".join(words)


def _plain(seconds: float) -> str:
    return f"{seconds:.2f}".rstrip("0").rstrip(".")
