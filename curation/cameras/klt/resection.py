"""Poses of frames from mapped points: reweighted Gauss-Newton steps from a nearby pose, for many frames at once."""

from typing import NamedTuple

import numpy as np

from curation.cameras.rotation import cross_matrix, exponential

_STEPS = 8
_SCALE_PX = 1.0


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
        rotation, translation = _step(points, rotation, translation, focal, _SCALE_PX * max(1.0, 8.0 / 2**step))
    return Resection(rotation, translation, reprojection_errors(points, rotation, translation, focal))


def reprojection_errors(points: Observations, rotation: np.ndarray, translation: np.ndarray, focal: float) -> np.ndarray:
    """Return the reprojection error of each point, f8 [N, P] px; NaN where it is not used."""
    residual, local = _residuals(points, rotation, translation, focal)
    error_px = np.where(local[..., 2] > 0, np.linalg.norm(residual, axis=-1), 1e4)
    return np.where(points.used, error_px, np.nan)


def _residuals(
    points: Observations, rotation: np.ndarray, translation: np.ndarray, focal: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the residuals [N, P, 2] px, and the points in camera coordinates [N, P, 3]."""
    local = points.world @ rotation.transpose(0, 2, 1) + translation[:, None]
    depth = np.where(local[..., 2:] > 1e-6, local[..., 2:], 1e-6)
    return np.clip(focal * local[..., :2] / depth - points.observed, -1e4, 1e4), local


def _step(
    points: Observations, rotation: np.ndarray, translation: np.ndarray, focal: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    residual, local = _residuals(points, rotation, translation, focal)
    behind = local[..., 2] <= 1e-6
    weight = np.where(points.used & ~behind, 1 / (1 + (residual**2).sum(-1) / scale**2), 0.0)
    depth = np.where(behind, 1.0, local[..., 2])
    project = np.zeros((*residual.shape, 3))
    project[..., 0, 0] = project[..., 1, 1] = focal / depth
    project[..., :, 2] = -focal * local[..., :2] / depth[..., None] ** 2
    jacobian = np.concatenate([-project @ cross_matrix(local), project], -1)
    count = len(local)
    flat, weighted = jacobian.reshape(count, -1, 6), (jacobian * weight[..., None, None]).reshape(count, -1, 6)
    normal = weighted.transpose(0, 2, 1) @ flat
    gradient = (weighted * residual.reshape(count, -1, 1)).sum(1)
    diagonal = np.einsum("nii->ni", normal)
    normal = normal + np.eye(6) * (1e-6 * diagonal + 1e-12)[:, :, None]
    step = np.linalg.solve(normal, -gradient[..., None])[..., 0]
    update = exponential(np.clip(step[:, :3], -0.1, 0.1))
    return update @ rotation, (update @ translation[..., None])[..., 0] + step[:, 3:]
