"""Poses of frames from points that are mapped: reweighted Gauss-Newton steps from a pose nearby, for many frames at once."""

from typing import NamedTuple

import numpy as np

from curation.cameras.rotation import cross, exponential

_STEPS = 8
_SCALE_PX = 1.0


class Sight(NamedTuple):
    """world f8 [N, P, 3], seen f8 [N, P, 2] px from the principal point, used bool [N, P]: the points in each of N frames."""

    world: np.ndarray
    seen: np.ndarray
    used: np.ndarray


class Resected(NamedTuple):
    """turn [N, 3, 3], shift [N, 3] world-to-camera; distance f8 [N, P] px, how far each point is off (NaN: unused)."""

    turn: np.ndarray
    shift: np.ndarray
    distance: np.ndarray


def resect(sight: Sight, turn: np.ndarray, shift: np.ndarray, focal: float) -> Resected:
    """The poses that bring the points to where they are seen, from those given on."""
    for step in range(_STEPS):
        # Wide at first: the start may be several px off.
        turn, shift = _step(sight, turn, shift, focal, _SCALE_PX * max(1.0, 8.0 / 2**step))
    return Resected(turn, shift, distances(sight, turn, shift, focal))


def distances(sight: Sight, turn: np.ndarray, shift: np.ndarray, focal: float) -> np.ndarray:
    """How far each point is off, f8 [N, P] px; NaN where it is not used."""
    left, local = _left(sight, turn, shift, focal)
    off = np.where(local[..., 2] > 0, np.linalg.norm(left, axis=-1), 1e4)
    return np.where(sight.used, off, np.nan)


def _left(sight: Sight, turn: np.ndarray, shift: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Reprojection error [N, P, 2] px, and the points in each camera [N, P, 3]."""
    local = sight.world @ turn.transpose(0, 2, 1) + shift[:, None]
    ahead = np.where(local[..., 2:] > 1e-6, local[..., 2:], 1e-6)
    return np.clip(focal * local[..., :2] / ahead - sight.seen, -1e4, 1e4), local


def _step(sight: Sight, turn: np.ndarray, shift: np.ndarray, focal: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    left, local = _left(sight, turn, shift, focal)
    behind = local[..., 2] <= 1e-6
    weight = np.where(sight.used & ~behind, 1 / (1 + (left**2).sum(-1) / scale**2), 0.0)
    ahead = np.where(behind, 1.0, local[..., 2])
    project = np.zeros((*left.shape, 3))
    project[..., 0, 0] = project[..., 1, 1] = focal / ahead
    project[..., :, 2] = -focal * local[..., :2] / ahead[..., None] ** 2
    jacobian = np.concatenate([-project @ cross(local), project], -1)
    count = len(local)
    flat, by = jacobian.reshape(count, -1, 6), (jacobian * weight[..., None, None]).reshape(count, -1, 6)
    normal = by.transpose(0, 2, 1) @ flat
    gradient = (by * left.reshape(count, -1, 1)).sum(1)
    size = np.einsum("nii->ni", normal)
    normal = normal + np.eye(6) * (1e-6 * size + 1e-12)[:, :, None]
    step = np.linalg.solve(normal, -gradient[..., None])[..., 0]
    more = exponential(np.clip(step[:, :3], -0.1, 0.1))
    return more @ turn, (more @ shift[..., None])[..., 0] + step[:, 3:]
