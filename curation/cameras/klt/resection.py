"""Poses of frames from mapped points: reweighted Gauss-Newton steps from a nearby pose, for many frames at once."""

from typing import NamedTuple

import numpy as np

from curation.cameras.rotation import exponential

_STEPS, _MIN_STEPS = 8, 4
_SCALE_PX = 1.0
_CONVERGED = 1e-4  # of the largest turn in radians, and of the largest move as a share of the distance to the points
_MIN_DEPTH = 1e-6


class Observations(NamedTuple):
    """The mapped points that each of N frames sees.

    world f8 [N, P, 3]; observed f8 [N, P, 2] px from the principal point; used bool [N, P].
    """

    world: np.ndarray
    observed: np.ndarray
    used: np.ndarray


class Resection(NamedTuple):
    """Poses rotation [N, 3, 3], translation [N, 3] world-to-camera, and the reprojection errors f8 [N, P] px (NaN: unused)."""

    rotation: np.ndarray
    translation: np.ndarray
    error_px: np.ndarray


def resect(points: Observations, rotation: np.ndarray, translation: np.ndarray, focal: float) -> Resection:
    """Find the poses, starting from the given ones, that project the points to where they are observed."""
    for step in range(_STEPS):
        # The first steps are wide, as the start may be several px off.
        scale = _SCALE_PX * max(1.0, 8.0 / 2**step)
        rotation, translation, moved = _step(points, rotation, translation, focal, scale)
        if step + 1 >= _MIN_STEPS and moved < _CONVERGED:
            break
    return Resection(rotation, translation, reprojection_errors(points, rotation, translation, focal))


def reprojection_errors(points: Observations, rotation: np.ndarray, translation: np.ndarray, focal: float) -> np.ndarray:
    """Return the reprojection error of each point, f8 [N, P] px; NaN where it is not used."""
    _, _, depth, left_x, left_y = _project(points, rotation, translation, focal)
    error_px = np.where(depth > 0, np.hypot(left_x, left_y), 1e4)
    return np.where(points.used, error_px, np.nan)


def _project(
    points: Observations, rotation: np.ndarray, translation: np.ndarray, focal: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x / z, y / z and z of the points in camera coordinates, and the residuals in x and y in px; each [N, P]."""
    local = points.world @ rotation.transpose(0, 2, 1) + translation[:, None]
    depth = local[..., 2]
    inverse = 1 / np.maximum(depth, _MIN_DEPTH)
    across, down = local[..., 0] * inverse, local[..., 1] * inverse
    left_x, left_y = focal * across - points.observed[..., 0], focal * down - points.observed[..., 1]
    return across, down, depth, np.clip(left_x, -1e4, 1e4), np.clip(left_y, -1e4, 1e4)


def _step(
    points: Observations, rotation: np.ndarray, translation: np.ndarray, focal: float, scale: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the poses after a step, and how far it went: see `_CONVERGED`."""
    a, b, depth, left_x, left_y = _project(points, rotation, translation, focal)
    ahead = points.used & (depth > _MIN_DEPTH)
    weight = ahead / (1 + (left_x * left_x + left_y * left_y) / scale**2)
    near = focal / np.where(ahead, depth, 1.0)
    a, b = np.where(ahead, a, 0.0), np.where(ahead, b, 0.0)
    # How a point moves in the picture when the camera turns (applied on the left) and moves.
    by_x, by_y = np.empty((2, len(a), 6, a.shape[1]))
    for k, column in enumerate((-focal * a * b, focal * (1 + a * a), -focal * b, near, 0.0, -near * a)):
        by_x[:, k] = column
    for k, column in enumerate((-focal * (1 + b * b), focal * a * b, focal * a, 0.0, near, -near * b)):
        by_y[:, k] = column
    weighted_x, weighted_y = by_x * weight[:, None], by_y * weight[:, None]
    normal = weighted_x @ by_x.transpose(0, 2, 1) + weighted_y @ by_y.transpose(0, 2, 1)
    gradient = (weighted_x @ left_x[..., None] + weighted_y @ left_y[..., None])[..., 0]
    diagonal = np.einsum("nii->ni", normal)
    normal = normal + np.eye(6) * (1e-6 * diagonal + 1e-12)[:, :, None]
    step = np.linalg.solve(normal, -gradient[..., None])[..., 0]
    update = exponential(np.clip(step[:, :3], -0.1, 0.1))
    distance = np.where(ahead, depth, 0).sum(1) / np.maximum(ahead.sum(1), 1)
    moved = max(float(np.abs(step[:, :3]).max()), float((np.abs(step[:, 3:]).max(1) / np.maximum(distance, 1e-12)).max()))
    return update @ rotation, (update @ translation[..., None])[..., 0] + step[:, 3:], moved
