"""The pose of every frame from the map of the keyframes: all frames at once, by reweighted Gauss-Newton steps.

Interpolated keyframe poses are wrong by 0.4 degrees a frame at a walk. A few steps from there reach what PnP from scratch
would. The motion of corners from frame to frame then refines the poses (`smooth_poses`).
"""

from typing import NamedTuple

import numpy as np

from curation.cameras.klt.bundle_adjust import Problem
from curation.cameras.klt.mapping import Map, triangulate
from curation.cameras.klt.resection import Observations, reprojection_errors, resect
from curation.cameras.klt.smooth_poses import smooth_poses
from curation.cameras.rotation import exponential, logarithm

_POINTS = 200  # per frame; more add cost, not accuracy
_TRACKS_PER_BLOCK = 64  # that are triangulated at once
INLIER_PX = 2.5


class FramePoses(NamedTuple):
    """The poses of all frames of a clip, and how well they fit.

    pose f8 [N, 4, 4] camera-to-world. inliers int [N]: visible mapped points within 2.5 px of their projection; share f8 [N]:
    their share of the visible mapped points. residual_px f8 [N]: the median reprojection error, NaN where no point is visible.
    """

    pose: np.ndarray
    inliers: np.ndarray
    share: np.ndarray
    residual_px: np.ndarray


def register_frames(points_NM2: np.ndarray, reconstruction: Map) -> FramePoses:
    """Find the poses of all frames. Points are in px from the principal point, NaN where not visible."""
    start = np.linalg.inv(interpolate_poses(reconstruction.frames, reconstruction.pose, len(points_NM2)))
    points = points_NM2.astype(np.float64)
    mapped = _mapped_points(points[:, reconstruction.track], reconstruction.point)
    resected = resect(mapped, start[:, :3, :3], start[:, :3, 3], reconstruction.focal_px)
    smooth = smooth_poses(_all_observations(points, reconstruction, resected.rotation, resected.translation))
    pose = np.tile(np.eye(4), (len(start), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = smooth.rotation, smooth.translation
    error_px = reprojection_errors(mapped, smooth.rotation, smooth.translation, reconstruction.focal_px)
    inliers = (np.nan_to_num(error_px, nan=np.inf) < INLIER_PX).sum(1)
    return FramePoses(np.linalg.inv(pose), inliers, inliers / np.maximum(mapped.used.sum(1), 1), _median(error_px))


def _all_observations(points_NM2: np.ndarray, reconstruction: Map, rotation: np.ndarray, translation: np.ndarray) -> Problem:
    """Return all observations of mapped points, and of points that the keyframes alone saw too little of to map them."""
    world = _triangulate_unmapped(points_NM2, reconstruction, rotation, translation)
    world[reconstruction.track] = reconstruction.point
    known = np.flatnonzero(np.isfinite(world[:, 0]))
    point, frame = np.nonzero(np.isfinite(points_NM2[:, known, 0]).T)
    fixed = np.zeros(len(rotation), bool)
    return Problem(
        rotation, translation, world[known], reconstruction.focal_px, frame, point, points_NM2[frame, known[point]], fixed
    )


def _triangulate_unmapped(
    points_NM2: np.ndarray, reconstruction: Map, rotation: np.ndarray, translation: np.ndarray
) -> np.ndarray:
    """Return points [M, 3] of the tracks that are not in the map, from all frames' poses; NaN where that fails.

    It takes some tracks at a time: those that begin together are visible in few frames.
    """
    world = np.full((points_NM2.shape[1], 3), np.nan)
    rest = np.setdiff1d(np.arange(len(world)), reconstruction.track)
    for some in np.split(rest, range(_TRACKS_PER_BLOCK, len(rest), _TRACKS_PER_BLOCK)):
        visible = np.isfinite(points_NM2[:, some, 0])
        frames = np.flatnonzero(visible.any(1))
        if len(frames):
            xy = points_NM2[np.ix_(frames, some)]
            world[some] = triangulate(xy, visible[frames], rotation[frames], translation[frames], reconstruction.focal_px)
    return world


def _median(error_px: np.ndarray) -> np.ndarray:
    known = np.isfinite(error_px).any(1)
    median = np.full(len(error_px), np.nan)
    median[known] = np.nanmedian(error_px[known], 1)
    return median


def _mapped_points(mapped_NT2: np.ndarray, point: np.ndarray) -> Observations:
    """Return the visible mapped points of each frame, at most 200, spread over the tracks' ages."""
    visible = np.isfinite(mapped_NT2[:, :, 0])
    count, size = len(visible), min(_POINTS, int(visible.sum(1).max(initial=0)))
    mapped = Observations(np.ones((count, size, 3)), np.zeros((count, size, 2)), np.zeros((count, size), bool))
    for i, row in enumerate(visible):
        which = np.flatnonzero(row)
        if len(which) > size:
            which = which[np.linspace(0, len(which) - 1, size).astype(int)]
        mapped.world[i, : len(which)], mapped.observed[i, : len(which)] = point[which], mapped_NT2[i, which]
        mapped.used[i, : len(which)] = True
    return mapped


def interpolate_poses(frames: np.ndarray, pose_K44: np.ndarray, count: int) -> np.ndarray:
    """Return poses [count, 4, 4] interpolated between those of `frames`, and constant outside."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    when = np.clip(np.arange(count), frames[0], frames[-1])
    low = np.clip(np.searchsorted(frames, when, side="right") - 1, 0, max(0, len(frames) - 2))
    high = np.minimum(low + 1, len(frames) - 1)
    part = ((when - frames[low]) / np.maximum(frames[high] - frames[low], 1))[:, None]
    before, after = pose_K44[low], pose_K44[high]
    between = before[:, :3, :3].transpose(0, 2, 1) @ after[:, :3, :3]
    poses[:, :3, :3] = before[:, :3, :3] @ exponential(part * logarithm(between))
    poses[:, :3, 3] = (1 - part) * before[:, :3, 3] + part * after[:, :3, 3]
    return poses
