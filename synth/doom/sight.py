"""What the player's eye reaches: whether what moves of a sector is on screen, or hidden by a wall, a step, a low ceiling."""

import numpy as np

from synth.doom.navigate import bearing_deg
from synth.doom.player import VIEW_DEG
from synth.doom.wad import Level

HALF_VIEW_DEG = VIEW_DEG / 2
# Half the height of the view at distance 1: pixels are a fifth taller than wide, and a status bar leaves 168 of 200 rows.
RISE, RISE_ABOVE_HUD = 0.625, 0.625 * 168 / 200
_ALONG = (0.1, 0.5, 0.9)  # where on a border the eye looks: a corner that shows is a door that shows
_SHORT_OF = 0.999  # a ray ends before the border it looks at, which must not hide itself
Eye = tuple[float, float, float]
Heights = tuple[tuple[float, float], ...]


class Sight:
    """The lines of one map as arrays: start and end [L, 2], the sectors on both sides [L], -1 where there is none."""

    def __init__(self, level: Level, rise: float = RISE) -> None:
        self._start = np.array([line.start for line in level.lines], np.float64)
        self._end = np.array([line.end for line in level.lines], np.float64)
        self._front = np.array([line.front for line in level.lines])
        self._back = np.array([-1 if line.back is None else line.back for line in level.lines])
        self._rise = rise

    def sees(self, sector: int, part: int, eye: Eye, yaw_deg: float, heights: Heights) -> bool:
        """Whether any place looked at on the moving part (0: the floor, 1: the ceiling) of a sector is in view and unhidden.

        Looked at are its edge along each border, and the middle of the face between it and the neighbour's floor or ceiling.
        """
        gaps = self._gaps(np.array(heights))
        for line in np.flatnonzero((self._front == sector) | (self._back == sector)):
            for along in _ALONG:
                place = self._start[line] + along * (self._end[line] - self._start[line])
                if abs(bearing_deg(*eye[:2], yaw_deg, (float(place[0]), float(place[1])))) >= HALF_VIEW_DEG:
                    continue
                if any(self._reaches(eye, np.append(place, z), gaps) for z in self._faces(int(line), sector, part, heights)):
                    return True
        return False

    def _faces(self, line: int, sector: int, part: int, heights: Heights) -> list[float]:
        """Heights to look at on a border: the moving edge, and half way to the neighbour's."""
        edge, other = heights[sector][part], self._front[line] + self._back[line] - sector
        return [edge] if self._back[line] < 0 else [edge, (edge + heights[other][part]) / 2]

    def _gaps(self, heights_S2: np.ndarray) -> np.ndarray:
        """Between which heights one sees through each line, [L, 2]; the upper is not above the lower where one does not."""
        floor = np.maximum(heights_S2[self._front, 0], heights_S2[self._back, 0])
        ceiling = np.minimum(heights_S2[self._front, 1], heights_S2[self._back, 1])
        return np.stack([floor, np.where(self._back < 0, floor, ceiling)], 1)

    def _reaches(self, eye: Eye, target: np.ndarray, gaps_L2: np.ndarray) -> bool:
        """Whether the ray from the eye to just before the target stays in the view's height and in the gaps it crosses."""
        ray, wall = target[:2] - eye[:2], self._end - self._start
        if abs(target[2] - eye[2]) > self._rise * np.hypot(*ray):
            return False
        to_wall = self._start - eye[:2]
        across = _cross(ray, wall)
        with np.errstate(divide="ignore", invalid="ignore"):
            on_ray, on_wall = _cross(to_wall, wall) / across, _cross(to_wall, ray) / across
        crossed = (on_ray > 0) & (on_ray < _SHORT_OF) & (on_wall >= 0) & (on_wall <= 1)
        z = eye[2] + on_ray[crossed] * (target[2] - eye[2])
        low, high = gaps_L2[crossed].T
        return bool(((z > low) & (z < high)).all())


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
