"""The pose of every frame against the map of the keyframes: all frames at once, by reweighted Gauss-Newton steps.

Interpolated keyframe poses are 0.4 degrees off a frame at a walk; a few steps from there reach what PnP from scratch would.
Then what corners do from frame to frame has its say (`steady`).
"""

from typing import NamedTuple

import numpy as np

from curation.cameras.klt.bundle_adjust import Problem
from curation.cameras.klt.mapping import Map, triangulated
from curation.cameras.klt.resection import Sight, distances, resect
from curation.cameras.klt.smooth_poses import steadied
from curation.cameras.rotation import exponential, logarithm

_POINTS = 200  # a frame; more add cost, not accuracy
_TOGETHER = 64  # tracks that are triangulated at once
INLIER_PX = 2.5


class Infill(NamedTuple):
    """pose f8 [N, 4, 4] camera-to-world; inliers int [N], mapped points seen within 2.5 px of where they should be, and share
    f8 [N], of those that are seen at all; residual_px f8 [N], their median, NaN where there is none.
    """

    pose: np.ndarray
    inliers: np.ndarray
    share: np.ndarray
    residual_px: np.ndarray


def infill(points_NM2: np.ndarray, found: Map) -> Infill:
    """Poses of all frames; points in px from the principal point, NaN where unseen."""
    start = np.linalg.inv(interpolated(found.frames, found.pose, len(points_NM2)))
    points = points_NM2.astype(np.float64)
    sight = _sight(points[:, found.track], found.point)
    near = resect(sight, start[:, :3, :3], start[:, :3, 3], found.focal_px)
    there = steadied(_everything(points, found, near.turn, near.shift))
    pose = np.tile(np.eye(4), (len(start), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = there.turn, there.shift
    distance = distances(sight, there.turn, there.shift, found.focal_px)
    inliers = (np.nan_to_num(distance, nan=np.inf) < INLIER_PX).sum(1)
    return Infill(np.linalg.inv(pose), inliers, inliers / np.maximum(sight.used.sum(1), 1), _median(distance))


def _everything(points_NM2: np.ndarray, found: Map, turn: np.ndarray, shift: np.ndarray) -> Problem:
    """All that is seen, in every frame, of mapped points and of those that keyframes alone saw too little of to map them."""
    world = _left_out(points_NM2, found, turn, shift)
    world[found.track] = found.point
    known = np.flatnonzero(np.isfinite(world[:, 0]))
    point, frame = np.nonzero(np.isfinite(points_NM2[:, known, 0]).T)
    free = np.zeros(len(turn), bool)
    return Problem(turn, shift, world[known], found.focal_px, frame, point, points_NM2[frame, known[point]], free)


def _left_out(points_NM2: np.ndarray, found: Map, turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Points [M, 3] of the tracks that are not in the map, from all frames' poses; NaN where there is none. Some tracks at a
    time: those that begin together are seen in few frames.
    """
    world = np.full((points_NM2.shape[1], 3), np.nan)
    rest = np.setdiff1d(np.arange(len(world)), found.track)
    for some in np.split(rest, range(_TOGETHER, len(rest), _TOGETHER)):
        seen = np.isfinite(points_NM2[:, some, 0])
        frames = np.flatnonzero(seen.any(1))
        if len(frames):
            xy = points_NM2[np.ix_(frames, some)]
            world[some] = triangulated(xy, seen[frames], turn[frames], shift[frames], found.focal_px)
    return world


def _median(distance: np.ndarray) -> np.ndarray:
    some = np.isfinite(distance).any(1)
    found = np.full(len(distance), np.nan)
    found[some] = np.nanmedian(distance[some], 1)
    return found


def _sight(mapped_NT2: np.ndarray, point: np.ndarray) -> Sight:
    """The mapped points in each frame, at most 200, spread over the tracks' ages."""
    seen = np.isfinite(mapped_NT2[:, :, 0])
    most = min(_POINTS, int(seen.sum(1).max(initial=0)))
    sight = Sight(np.ones((len(seen), most, 3)), np.zeros((len(seen), most, 2)), np.zeros((len(seen), most), bool))
    for i, row in enumerate(seen):
        which = np.flatnonzero(row)
        if len(which) > most:
            which = which[np.linspace(0, len(which) - 1, most).astype(int)]
        sight.world[i, : len(which)], sight.seen[i, : len(which)] = point[which], mapped_NT2[i, which]
        sight.used[i, : len(which)] = True
    return sight


def interpolated(frames: np.ndarray, pose_K44: np.ndarray, count: int) -> np.ndarray:
    """Poses [count, 4, 4] between those of `frames`, held outside."""
    found = np.tile(np.eye(4), (count, 1, 1))
    when = np.clip(np.arange(count), frames[0], frames[-1])
    low = np.clip(np.searchsorted(frames, when, side="right") - 1, 0, max(0, len(frames) - 2))
    high = np.minimum(low + 1, len(frames) - 1)
    part = ((when - frames[low]) / np.maximum(frames[high] - frames[low], 1))[:, None]
    before, after = pose_K44[low], pose_K44[high]
    between = before[:, :3, :3].transpose(0, 2, 1) @ after[:, :3, :3]
    found[:, :3, :3] = before[:, :3, :3] @ exponential(part * logarithm(between))
    found[:, :3, 3] = (1 - part) * before[:, :3, 3] + part * after[:, :3, 3]
    return found
