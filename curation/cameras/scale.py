"""One unit of length for the clips of a source: structure from motion gives each a scale of its own.

A game's character has a top speed. The unit is the way that it goes at that speed in a second, so that a trajectory times
`scale_to_unit` moves at 1 unit a second when the player does nothing but walk. A clip that never walks that fast takes its
scale from the clip that it touches: across the boundary the speed is the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras.camera import Camera

_SMOOTH_S = 0.3  # the chord over which speed is taken: a step of one frame is half noise
_TOP = 0.9  # the quantile of speed: the fastest tenth holds the spikes that noise and knocks make
_EDGE_S = 0.25  # of each clip, in which speed is compared across a boundary
_MOVING = 0.7  # of a clip's own top speed: where it is slower at a boundary, it is about to stop or has just begun
_OWN = 0.5  # of its run's top speed: a clip that comes so near to it is measured by its own


def scales(cameras: Sequence[Camera | None], touching: Sequence[bool]) -> list[tuple[float, str]]:
    """(scale_to_unit, scale_source) of each camera, in the order of the source; None has no translation to scale.

    touching [N - 1]: whether a clip ends where the next one begins, in the same scene. speed: by its own top speed; linked:
    over touching clips; none: it does not move, or nothing is known.
    """
    found = [(1.0, "none")] * len(cameras)
    for run in _runs([None if camera is None else _Pace.of(camera) for camera in cameras], touching):
        best = max(pace.top * relative for _, pace, relative in run)
        for k, pace, relative in run:
            found[k] = (1 / pace.top, "speed") if pace.top * relative >= _OWN * best else (relative / best, "linked")
    return found


class _Pace(NamedTuple):
    """A clip's top speed, and how fast it begins and ends."""

    top: float
    begins: float
    ends: float

    @classmethod
    def of(cls, camera: Camera) -> "_Pace | None":
        """None where it does not move."""
        found, times_s = speed(camera), camera.times_s
        top = float(np.quantile(found, _TOP))
        begins = _at(times_s[0], found, times_s, times_s <= times_s[0] + _EDGE_S)
        ends = _at(times_s[-1], found, times_s, times_s >= times_s[-1] - _EDGE_S)
        return cls(top, begins, ends) if top > 0 else None

    def leads_to(self, after: "_Pace") -> bool:
        """Whether both move at the boundary between them."""
        return self.ends > _MOVING * self.top and after.begins > _MOVING * after.top


def _at(time_s: float, values: np.ndarray, times_s: np.ndarray, near: np.ndarray) -> float:
    """The value at a time by the line through those near it, for a speed that changes."""
    if near.sum() < 3:
        return float(values[near].mean())
    _, there = np.polyfit(times_s[near] - time_s, values[near], 1)
    return float(there)


def _runs(paces: Sequence[_Pace | None], touching: Sequence[bool]) -> list[list[tuple[int, _Pace, float]]]:
    """Stretches of clips linked over their boundaries: (number, pace, what brings its unit to that of the first) of each."""
    runs: list[list[tuple[int, _Pace, float]]] = []
    before: _Pace | None = None
    for k, pace in enumerate(paces):
        if pace is not None:
            if before is not None and touching[k - 1] and before.leads_to(pace):
                runs[-1].append((k, pace, runs[-1][-1][2] * before.ends / pace.begins))
            else:
                runs.append([(k, pace, 1.0)])
        before = pace
    return runs


def speed(camera: Camera) -> np.ndarray:
    """Speed f8 [N] in the pose's own unit a second: the chord over 0.3 s about each frame, shorter at the ends."""
    position, times_s = camera.pose[:, :3, 3], camera.times_s
    low = np.searchsorted(times_s, times_s - _SMOOTH_S / 2 - 1e-9)
    high = np.searchsorted(times_s, times_s + _SMOOTH_S / 2 + 1e-9, side="right") - 1
    lasts = np.maximum(times_s[high] - times_s[low], 1e-9)
    return np.linalg.norm(position[high] - position[low], axis=1) / lasts
