"""One unit of length for the clips of a source. Structure from motion gives each clip another scale.

A game's character has a top speed. The unit is the distance that it moves at that speed in a second. A trajectory times
`scale_to_unit` therefore moves at 1 unit a second while the player only walks. A clip that never walks that fast takes its
scale from an adjacent clip, since the speed is the same on both sides of the boundary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras.camera import Camera

_SMOOTH_S = 0.3  # the chord over which speed is measured: a step of one frame is half noise
_TOP = 0.9  # the quantile of speed: the fastest tenth contains the spikes of noise and knocks
_EDGE_S = 0.25  # of each clip, in which speed is compared across a boundary
_MOVING = 0.7  # of a clip's own top speed: a clip that is slower at a boundary is about to stop or has just begun to move
_OWN = 0.5  # of its run's top speed: a clip that comes this close is scaled by its own


def scales(paths: Sequence[Sequence[Camera]], adjacent: Sequence[bool]) -> list[tuple[float, str]]:
    """Return (scale_to_unit, scale_source) of each path, in the order of the source.

    A path is one clip, or the parts of one that share a scale; one without parts has no translation to scale. adjacent [N - 1]:
    whether a path ends where the next one begins, in the same scene. The source is "speed" for a path scaled by its own top
    speed, "linked" through adjacent paths, and "none" where it does not move, moves for too short a time, or nothing is known.
    """
    results = [(1.0, "none")] * len(paths)
    for run in _linked_runs([_Pace.of(parts) if parts else None for parts in paths], adjacent):
        best = max(pace.top * relative for _, pace, relative in run)
        for k, pace, relative in run:
            results[k] = (1 / pace.top, "speed") if pace.top * relative >= _OWN * best else (relative / best, "linked")
    return results


class _Pace(NamedTuple):
    """A path's top speed, and its speed at the beginning and at the end."""

    top: float
    begins: float
    ends: float

    @classmethod
    def of(cls, parts: Sequence[Camera]) -> "_Pace | None":
        """Measure a path; None where it does not move."""
        top = float(np.quantile(np.concatenate([speed(part) for part in parts]), _TOP))
        first, last = parts[0].times_s, parts[-1].times_s
        begins = _fit_at(first[0], speed(parts[0]), first, first <= first[0] + _EDGE_S)
        ends = _fit_at(last[-1], speed(parts[-1]), last, last >= last[-1] - _EDGE_S)
        return cls(top, begins, ends) if top > 0 else None

    def links_to(self, after: "_Pace") -> bool:
        """Whether both clips move at the boundary between them."""
        return self.ends > _MOVING * self.top and after.begins > _MOVING * after.top


def _fit_at(time_s: float, values: np.ndarray, times_s: np.ndarray, near: np.ndarray) -> float:
    """Return the value at a time of the line through the values near it. The speed may change there."""
    if near.sum() < 3:
        return float(values[near].mean())
    _, intercept = np.polyfit(times_s[near] - time_s, values[near], 1)
    return float(intercept)


def _linked_runs(paces: Sequence[_Pace | None], adjacent: Sequence[bool]) -> list[list[tuple[int, _Pace, float]]]:
    """Return runs of clips that are linked over their boundaries.

    Each clip is (number, pace, factor from its unit to the unit of the run's first clip).
    """
    runs: list[list[tuple[int, _Pace, float]]] = []
    before: _Pace | None = None
    for k, pace in enumerate(paces):
        if pace is not None:
            if before is not None and adjacent[k - 1] and before.links_to(pace):
                runs[-1].append((k, pace, runs[-1][-1][2] * before.ends / pace.begins))
            else:
                runs.append([(k, pace, 1.0)])
        before = pace
    return runs


def speed(camera: Camera) -> np.ndarray:
    """Return the speed f8 [N] in the pose's own unit a second: the chord over 0.3 s around each frame, shorter at the ends."""
    position, times_s = camera.pose[:, :3, 3], camera.times_s
    low = np.searchsorted(times_s, times_s - _SMOOTH_S / 2 - 1e-9)
    high = np.searchsorted(times_s, times_s + _SMOOTH_S / 2 + 1e-9, side="right") - 1
    duration_s = np.maximum(times_s[high] - times_s[low], 1e-9)
    return np.linalg.norm(position[high] - position[low], axis=1) / duration_s
