"""Two maps of a clip that agree, and how much trajectories disagree, whatever their world, scale and first pose.

A wall that fills the view can be mistaken for another one that was seen on another way. Everything that grows from there fits,
so a single map proves nothing, however it is checked.
"""

from typing import NamedTuple

import numpy as np

from curation.cameras.klt import mapping
from curation.cameras.klt.frame_poses import FramePoses, register_frames
from curation.cameras.klt.mapping import Map
from curation.cameras.path_smoothness import velocity_spike
from curation.cameras.rotation import angle_deg
from curation.cameras.settings import CheckSettings

_MIN_TRIES = 3  # starts of a map; more are tried only if one of the maps is plausible and none confirms it


class Disagreement(NamedTuple):
    """How far two trajectories are apart.

    path: RMS distance after the best similarity, as a share of the second one's path. rotation_deg: RMS difference of the
    rotations from frame to frame.
    """

    path: float
    rotation_deg: float

    @classmethod
    def of(cls, pose: np.ndarray, other: np.ndarray) -> "Disagreement":
        """Compare camera-to-world poses [N, 4, 4] with others of the same frames."""
        a, b = pose[:, :3, 3], other[:, :3, 3]
        length = float(np.linalg.norm(np.diff(b, axis=0), axis=1).sum())
        if not length or not np.ptp(a, axis=0).max():
            return UNKNOWN
        scale, rotation, translation = umeyama(a, b)
        distance = np.linalg.norm(scale * a @ rotation.T + translation - b, axis=1)
        return cls(float(np.sqrt((distance**2).mean())) / length, rotation_difference_deg(pose, other))


UNKNOWN = Disagreement(1.0, 180.0)  # the largest possible: where one does not move, or there is no other


def rotation_difference_deg(pose: np.ndarray, other: np.ndarray) -> float:
    """Return the RMS difference of the rotations from frame to frame of poses [N, 4, 4], in degrees."""
    one, two = (p[:-1, :3, :3].transpose(0, 2, 1) @ p[1:, :3, :3] for p in (pose, other))
    return float(np.sqrt((angle_deg(two.transpose(0, 2, 1) @ one) ** 2).mean()))


def umeyama(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return scale s, rotation R, translation t of the similarity s R x + t that brings points x [N, 3] closest to y.

    (Umeyama 1991)
    """
    middle_x, middle_y = x.mean(0), y.mean(0)
    u, d, vt = np.linalg.svd((y - middle_y).T @ (x - middle_x) / len(x))
    sign = np.array([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float((d * sign).sum() / ((x - middle_x) ** 2).sum() * len(x))
    return scale, rotation, middle_y - scale * rotation @ middle_x


class Candidate(NamedTuple):
    """A map, the poses that it gives all frames, and their `path_smoothness.velocity_spike`."""

    map: Map
    poses: FramePoses
    velocity_spike: float

    @property
    def quality(self) -> tuple[float, float]:
        """What the better of two maps has more of: registered frames, then the share of inliers in the worst frame."""
        return self.map.registered, float(self.poses.share.min())

    def is_plausible(self, limits: CheckSettings) -> bool:
        """Whether it could be right: all frames are registered, most points in each are inliers, the path does not break."""
        registered, share = self.quality
        has_points = registered >= limits.min_registered and share >= limits.min_inlier_share
        return has_points and self.velocity_spike <= limits.max_velocity_spike

    def disagreement(self, other: "Candidate") -> Disagreement:
        return Disagreement.of(self.poses.pose, other.poses.pose)

    def agrees(self, other: "Candidate", limits: CheckSettings) -> bool:
        path, rotation_deg = self.disagreement(other)
        return path <= limits.max_map_disagreement and rotation_deg <= limits.max_map_disagreement_deg


def grow_map(
    points: np.ndarray, times_s: np.ndarray, pair: mapping.InitialPair, focal: float, focal_fixed: bool
) -> Candidate | None:
    """Return the map that grows from a pair of frames, with the poses of all frames; None where the pair gives no start.

    Points [N, M, 2] are in px from the principal point. focal: px, the start of the search unless it is fixed.
    """
    reconstruction = mapping.reconstruct(points, times_s, pair, focal, focal_fixed)
    if reconstruction is None:
        return None
    poses = register_frames(points, reconstruction)
    return Candidate(reconstruction, poses, velocity_spike(poses.pose, times_s))


def agreeing_maps(
    points: np.ndarray, times_s: np.ndarray, focal: float, focal_fixed: bool, limits: CheckSettings, tries: int | None = None
) -> list[Candidate]:
    """Return two plausible maps that agree, started in different parts of the clip; if no two do, all maps. Best first.

    Arguments are those of `grow_map`. tries: maps to start at most.
    """
    candidates: list[Candidate] = []
    for number, pair in enumerate(mapping.initial_pairs(points, focal)[:tries]):
        if number >= _MIN_TRIES and not any(each.is_plausible(limits) for each in candidates):
            break
        one = grow_map(points, times_s, pair, focal, focal_fixed)
        if one is None:
            continue
        for other in candidates if one.is_plausible(limits) else []:
            if other.is_plausible(limits) and one.agrees(other, limits):
                return sorted((one, other), key=lambda each: each.quality, reverse=True)
        candidates.append(one)
    return sorted(candidates, key=lambda each: each.quality, reverse=True)
