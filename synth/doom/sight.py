"""Line of sight: whether the moving floor or ceiling of a sector is on screen, or hidden by a wall, a step, a low ceiling."""

import numpy as np

from synth.doom.navigate import bearing_deg
from synth.doom.player import VIEW_DEG
from synth.doom.wad import Level

HALF_VIEW_DEG = VIEW_DEG / 2
# Half the height of the view at distance 1. Pixels are a fifth taller than wide, and the status bar leaves 168 of 200 rows.
HALF_HEIGHT, HALF_HEIGHT_ABOVE_HUD = 0.625, 0.625 * 168 / 200
_POSITIONS_ALONG = (0.1, 0.5, 0.9)  # points tested along a border: a door counts as visible if one corner is
_RAY_END = 0.999  # a ray ends just before its target, so that the target's own border does not hide it
Eye = tuple[float, float, float]
Heights = tuple[tuple[float, float], ...]


class LineOfSight:
    """Visibility tests on one map. Lines are arrays: start and end [L, 2], the sectors on both sides [L], -1 for none."""

    def __init__(self, level: Level, half_height: float = HALF_HEIGHT) -> None:
        self._start = np.array([line.start for line in level.lines], np.float64)
        self._end = np.array([line.end for line in level.lines], np.float64)
        self._front = np.array([line.front for line in level.lines])
        self._back = np.array([-1 if line.back is None else line.back for line in level.lines])
        self._half_height = half_height

    def sees(self, sector: int, part: int, eye: Eye, yaw_deg: float, heights: Heights) -> bool:
        """Whether any tested point on the moving part of a sector (0: its floor, 1: its ceiling) is in view and not hidden.

        Tested are its edge along each border, and the middle of the face between it and the neighbour's floor or ceiling.
        """
        gaps = self._gaps(np.array(heights))
        for line in np.flatnonzero((self._front == sector) | (self._back == sector)):
            for along in _POSITIONS_ALONG:
                place = self._start[line] + along * (self._end[line] - self._start[line])
                if abs(bearing_deg(*eye[:2], yaw_deg, (float(place[0]), float(place[1])))) >= HALF_VIEW_DEG:
                    continue
                if any(
                    self._is_unobstructed(eye, np.append(place, z), gaps)
                    for z in self._test_heights(int(line), sector, part, heights)
                ):
                    return True
        return False

    def _test_heights(self, line: int, sector: int, part: int, heights: Heights) -> list[float]:
        """Return the heights to test on a border: the moving edge, and half way to the neighbour's."""
        edge, other = heights[sector][part], self._front[line] + self._back[line] - sector
        return [edge] if self._back[line] < 0 else [edge, (edge + heights[other][part]) / 2]

    def _gaps(self, heights_S2: np.ndarray) -> np.ndarray:
        """Return the open height range of each line, [L, 2]: bottom and top. Where the line is closed, top <= bottom."""
        floor = np.maximum(heights_S2[self._front, 0], heights_S2[self._back, 0])
        ceiling = np.minimum(heights_S2[self._front, 1], heights_S2[self._back, 1])
        return np.stack([floor, np.where(self._back < 0, floor, ceiling)], 1)

    def _is_unobstructed(self, eye: Eye, target: np.ndarray, gaps_L2: np.ndarray) -> bool:
        """Whether the ray from the eye to just before the target stays within the view and within the gaps that it crosses."""
        ray, wall = target[:2] - eye[:2], self._end - self._start
        if abs(target[2] - eye[2]) > self._half_height * np.hypot(*ray):
            return False
        to_wall = self._start - eye[:2]
        across = _cross(ray, wall)
        with np.errstate(divide="ignore", invalid="ignore"):
            on_ray, on_wall = _cross(to_wall, wall) / across, _cross(to_wall, ray) / across
        crossed = (on_ray > 0) & (on_ray < _RAY_END) & (on_wall >= 0) & (on_wall <= 1)
        z = eye[2] + on_ray[crossed] * (target[2] - eye[2])
        bottom, top = gaps_L2[crossed].T
        return bool(((z > bottom) & (z < top)).all())


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
