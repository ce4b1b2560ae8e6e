"""What the player's eye reaches: whether a sector is on screen or behind a wall or a shut door, on the map's plane."""

import numpy as np

from synth.doom.navigate import bearing_deg
from synth.doom.player import VIEW_DEG
from synth.doom.wad import Level, Point

HALF_VIEW_DEG = VIEW_DEG / 2
_ALONG = (0.1, 0.5, 0.9)  # where on a border the eye looks: a corner that shows is a door that shows
_SHORT_OF = 0.999  # a ray ends before the border it looks at, which must not hide itself


class Sight:
    """The lines of one map as arrays: start and end [L, 2], the sectors on both sides [L], -1 where there is none."""

    def __init__(self, level: Level) -> None:
        self._start = np.array([line.start for line in level.lines], np.float64)
        self._end = np.array([line.end for line in level.lines], np.float64)
        self._front = np.array([line.front for line in level.lines])
        self._back = np.array([-1 if line.back is None else line.back for line in level.lines])

    def sees(self, sector: int, eye: Point, yaw_deg: float, heights: tuple[tuple[float, float], ...]) -> bool:
        """Whether any of nine and more points on the sector's border is in the view and nothing shut stands before it."""
        opaque = self._opaque(np.array(heights))
        for line in np.flatnonzero((self._front == sector) | (self._back == sector)):
            for along in _ALONG:
                x, y = self._start[line] + along * (self._end[line] - self._start[line])
                ahead = abs(bearing_deg(*eye, yaw_deg, (float(x), float(y)))) < HALF_VIEW_DEG
                if ahead and not self._blocked(np.array(eye), np.array([x, y]), opaque):
                    return True
        return False

    def _opaque(self, heights_S2: np.ndarray) -> np.ndarray:
        """Lines that nobody sees through, bool [L]: walls, and borders between which floor and ceiling leave no gap."""
        floor = np.maximum(heights_S2[self._front, 0], heights_S2[self._back, 0])
        ceiling = np.minimum(heights_S2[self._front, 1], heights_S2[self._back, 1])
        return (self._back < 0) | (ceiling <= floor)

    def _blocked(self, eye: np.ndarray, target: np.ndarray, opaque: np.ndarray) -> bool:
        """Whether an opaque line crosses the ray from the eye to just before the target."""
        ray, wall = target - eye, (self._end - self._start)[opaque]
        to_wall = self._start[opaque] - eye
        across = _cross(ray, wall)
        with np.errstate(divide="ignore", invalid="ignore"):
            on_ray, on_wall = _cross(to_wall, wall) / across, _cross(to_wall, ray) / across
        return bool(((on_ray > 0) & (on_ray < _SHORT_OF) & (on_wall >= 0) & (on_wall <= 1)).any())


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
