"""Two maps of a clip that agree, and how far trajectories are apart, whatever the world, the scale and the first pose of each.

A wall that fills the view can be taken for another one, seen on another way, and all that grows from there fits: one map is no
proof, however it is checked.
"""

from typing import NamedTuple

import numpy as np

from curation.cameras.klt import mapping
from curation.cameras.klt.frame_poses import Infill, infill
from curation.cameras.klt.mapping import Map
from curation.cameras.path_smoothness import velocity_spike
from curation.cameras.rotation import angle_deg
from curation.cameras.settings import CheckSettings

_SURELY_TRIED = 3  # beginnings of a map; more only where one of them holds and none bears it out


class Apart(NamedTuple):
    """path: RMS distance after the best similarity, as a share of the second one's path. turn_deg: RMS difference of the
    rotations from frame to frame.
    """

    path: float
    turn_deg: float

    @classmethod
    def of(cls, pose: np.ndarray, other: np.ndarray) -> "Apart":
        """Of camera-to-world poses [N, 4, 4]."""
        a, b = pose[:, :3, 3], other[:, :3, 3]
        length = float(np.linalg.norm(np.diff(b, axis=0), axis=1).sum())
        if not length or not np.ptp(a, axis=0).max():
            return UNKNOWN
        scale, turn, shift = umeyama(a, b)
        off = np.linalg.norm(scale * a @ turn.T + shift - b, axis=1)
        return cls(float(np.sqrt((off**2).mean())) / length, turned_apart_deg(pose, other))


UNKNOWN = Apart(1.0, 180.0)  # as far as can be: where one does not move, or there is no other


def turned_apart_deg(pose: np.ndarray, other: np.ndarray) -> float:
    """RMS difference of the rotations from frame to frame of poses [N, 4, 4], in degrees."""
    one, two = (p[:-1, :3, :3].transpose(0, 2, 1) @ p[1:, :3, :3] for p in (pose, other))
    return float(np.sqrt((angle_deg(two.transpose(0, 2, 1) @ one) ** 2).mean()))


def umeyama(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale s, rotation R, shift t of the similarity that brings points x [N, 3] closest to y: s R x + t (Umeyama 1991)."""
    middle_x, middle_y = x.mean(0), y.mean(0)
    u, d, vt = np.linalg.svd((y - middle_y).T @ (x - middle_x) / len(x))
    sign = np.array([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = (u * sign) @ vt
    scale = float((d * sign).sum() / ((x - middle_x) ** 2).sum() * len(x))
    return scale, turn, middle_y - scale * turn @ middle_x


class Grown(NamedTuple):
    """A map, the poses that all frames have in it, and their `path_smoothness.velocity_spike`."""

    map: Map
    poses: Infill
    spike: float

    @property
    def held(self) -> tuple[float, float]:
        """By which the better of two maps is known."""
        return self.map.reached, float(self.poses.share.min())

    def holds(self, limits: CheckSettings) -> bool:
        """Whether it could be right: every frame is reached, most points of each are where they should be, nothing breaks."""
        reached, share = self.held
        return reached >= limits.min_registered and share >= limits.min_inlier_share and self.spike <= limits.max_velocity_spike

    def apart(self, other: "Grown") -> Apart:
        return Apart.of(self.poses.pose, other.poses.pose)

    def agrees(self, other: "Grown", limits: CheckSettings) -> bool:
        path, turn_deg = self.apart(other)
        return path <= limits.max_map_disagreement and turn_deg <= limits.max_map_disagreement_deg


def agreed(points: np.ndarray, times_s: np.ndarray, start: float, held: bool, limits: CheckSettings) -> list[Grown]:
    """Two maps, begun in different parts of the clip, that hold and agree; where no two do, all there are. Best first.

    Points [N, M, 2] px from the principal point; start: the focal length in px, held or where to begin.
    """
    grown: list[Grown] = []
    for tried, pair in enumerate(mapping.first_pairs(points, start)):
        if tried >= _SURELY_TRIED and not any(each.holds(limits) for each in grown):
            break
        found = mapping.reconstruct(points, times_s, pair, start, held)
        if found is None:
            continue
        filled = infill(points, found)
        one = Grown(found, filled, velocity_spike(filled.pose, times_s))
        for other in grown if one.holds(limits) else []:
            if other.holds(limits) and one.agrees(other, limits):
                return sorted((one, other), key=lambda g: g.held, reverse=True)
        grown.append(one)
    return sorted(grown, key=lambda g: g.held, reverse=True)
