"""Rotations from tracks: robustly per frame pair, to choose the motion model, and of all frames and the focal length together.

Points are px from the principal point. `rotation[p]` takes a ray of the first frame of pair p to the camera of the second.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_STEPS = 8  # of reweighting; outliers are a weapon in hand, 20 % at most
_POINTS = 120  # per pair; more do not move the median
_MIN_POINTS = 15
_SCALE_PX = 0.7  # of the robust loss: the noise of a corner in a compressed picture
_MAX_STEPS = 25
_CONVERGED = 1e-6


class FramePairs(NamedTuple):
    """Frame pairs that share tracks.

    first, second int [P]: the frames. a, b f8 [P, K, 2]: the shared points in each of the two. used bool [P, K].
    """

    first: np.ndarray
    second: np.ndarray
    a: np.ndarray
    b: np.ndarray
    used: np.ndarray


def frame_pairs(points_NM2: np.ndarray, gaps: Sequence[int], every: int) -> FramePairs:
    """Return pairs of frames `gaps` apart, one from every `every` frames.

    Each pair has at most 120 shared points, spread over the tracks' ages.
    """
    visible = np.isfinite(points_NM2[:, :, 0])
    count, shared_tracks = len(points_NM2), []
    for gap in sorted({gap for gap in gaps if 0 < gap < count}):
        for i in range(0, count - gap, every):
            shared = np.flatnonzero(visible[i] & visible[i + gap])
            if len(shared) >= _MIN_POINTS:
                spread = np.linspace(0, len(shared) - 1, min(len(shared), _POINTS)).astype(int)
                shared_tracks.append((i, i + gap, shared[spread]))
    used = np.array([np.arange(_POINTS) < len(which) for *_, which in shared_tracks], bool).reshape(-1, _POINTS)
    a, b = (np.zeros((len(shared_tracks), _POINTS, 2)) for _ in range(2))
    for p, (i, j, which) in enumerate(shared_tracks):
        a[p, : len(which)], b[p, : len(which)] = points_NM2[i, which], points_NM2[j, which]
    first, second = (np.array([pair[side] for pair in shared_tracks], int) for side in (0, 1))
    return FramePairs(first, second, a, b, used)


def rays(points: np.ndarray, focal: float) -> np.ndarray:
    """Return directions [..., 3] with z = 1 of points [..., 2]."""
    return np.concatenate([points / focal, np.ones_like(points[..., :1])], -1)


def pair_rotations(pairs: FramePairs, focal: float, steps: int = _STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotation [P, 3, 3] that best explains each pair, and the residual px [P, K] at each point (NaN: unused).

    steps: of reweighting.
    """
    a, b = rays(pairs.a, focal), rays(pairs.b, focal)
    a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    weight = pairs.used.astype(float)
    for _ in range(steps):
        rotation = nearest_rotation((weight[..., None] * b).transpose(0, 2, 1) @ a)
        residual = _residual_px(pairs, a @ rotation.transpose(0, 2, 1), focal)
        scale = np.maximum(1.5 * np.nanmedian(residual, 1, keepdims=True), _SCALE_PX)
        weight = np.where(pairs.used, (1 + (np.nan_to_num(residual) / scale) ** 2) ** -2.0, 0.0)
    return rotation, residual


def _residual_px(pairs: FramePairs, rotated: np.ndarray, focal: float) -> np.ndarray:
    depth = np.maximum(rotated[..., 2:], 1e-3)
    residual = np.linalg.norm(focal * rotated[..., :2] / depth - pairs.b, axis=-1)
    return np.where(pairs.used, np.minimum(residual, 1e4), np.nan)


class JointRotations(NamedTuple):
    """Rotations of all frames from one fit.

    pose f8 [N, 3, 3] camera-to-world; focal px; focal_error: the standard error of the focal length, as a share of it, for
    points accurate to a pixel (0 where it was fixed); residual px [P, K] at each point of each pair, NaN where unused.
    """

    pose: np.ndarray
    focal_px: float
    focal_error: float
    residual: np.ndarray


def refine_rotations(pairs: FramePairs, pose_N33: np.ndarray, focal: float, fixed: bool) -> JointRotations:
    """Find the rotations and the focal length that explain all pairs at once (robust Gauss-Newton), from the given ones.

    The first frame keeps its rotation; `fixed` keeps the focal length. A pair alone does not show an error of the focal length,
    but these errors add up over a turn, so all pairs together determine it by the whole turn.
    """
    pose, residual, error = pose_N33.copy(), pairs.a[..., 0], 0.0
    for _ in range(_MAX_STEPS):
        normal, gradient, residual = _normal_equations(pairs, pose, focal)
        if fixed:
            normal[0, :], normal[:, 0], gradient[0] = 0, 0, 0
            normal[0, 0] = 1
        normal += 1e-9 * np.trace(normal) / len(normal) * np.eye(len(normal))
        step = np.linalg.solve(normal, -gradient)
        focal *= float(np.exp(np.clip(step[0], -0.2, 0.2)))
        pose[1:] = nearest_rotation(pose[1:] @ exponential(step[1:].reshape(-1, 3)))
        if abs(step).max() < _CONVERGED:
            break
    if not fixed:
        error = float(np.sqrt(np.linalg.inv(normal)[0, 0]))
    return JointRotations(pose, focal, error, residual)


def _normal_equations(pairs: FramePairs, pose: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the normal matrix, the gradient and the residual px [P, K].

    The parameters are log focal and a rotation vector for each frame but the first.
    """
    between = pose[pairs.second].transpose(0, 2, 1) @ pose[pairs.first]
    ray = rays(pairs.a, focal)
    rotated = np.einsum("pij,pkj->pki", between, ray)
    depth = np.maximum(rotated[..., 2], 1e-3)
    projected = rotated[..., :2] / depth[..., None]
    residual = focal * projected - pairs.b
    distance = np.linalg.norm(residual, axis=-1)
    weight = np.where(pairs.used, (1 + (distance / _SCALE_PX) ** 2) ** -2.0, 0.0)
    project = np.zeros((*projected.shape, 3))
    project[..., 0, 0] = project[..., 1, 1] = focal / depth
    project[..., :, 2] = -focal * projected / depth[..., None]
    # rotated = R_j' R_i ray: turning i by w adds -R_ij [ray]x w, turning j adds [rotated]x w.
    by_first = -np.einsum("pkab,pbc,pkcd->pkad", project, between, cross_matrix(ray))
    by_second = project @ cross_matrix(rotated)
    flat = np.concatenate([ray[..., :2], np.zeros_like(ray[..., :1])], -1)
    by_focal = focal * projected - np.einsum("pkab,pbc,pkc->pka", project, between, flat)
    jacobian = np.concatenate([by_focal[..., None], by_first, by_second], -1)
    blocks = np.einsum("pk,pkai,pkaj->pij", weight, jacobian, jacobian, optimize=True)
    gradients = np.einsum("pk,pkai,pka->pi", weight, jacobian, residual, optimize=True)
    normal, gradient = _assemble(pairs, blocks, gradients, len(pose))
    return normal, gradient, np.where(pairs.used, distance, np.nan)


def _assemble(pairs: FramePairs, blocks: np.ndarray, gradients: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    size = 1 + 3 * count
    normal, gradient = np.zeros((size, size)), np.zeros(size)
    steps = np.arange(3)
    where = np.concatenate(
        [np.zeros((len(blocks), 1), int), 1 + 3 * pairs.first[:, None] + steps, 1 + 3 * pairs.second[:, None] + steps], 1
    )
    np.add.at(normal, (where[:, :, None], where[:, None, :]), blocks)
    np.add.at(gradient, where, gradients)
    free = np.r_[0, 4:size]  # the first frame's rotation defines the world
    return normal[np.ix_(free, free)], gradient[free]


def chain_rotations(pairs: FramePairs, rotation: np.ndarray, count: int) -> np.ndarray:
    """Return camera-to-world rotations [N, 3, 3] from those of neighbouring frames. A missing one repeats the one before."""
    step = {int(i): rotation[p] for p, (i, j) in enumerate(zip(pairs.first, pairs.second, strict=True)) if j == i + 1}
    pose, last = [np.eye(3)], np.eye(3)
    for i in range(count - 1):
        last = step.get(i, last)
        pose.append(pose[-1] @ last.T)
    return np.array(pose)


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """Return the rotations nearest to matrices [..., 3, 3], which rounding may have made inexact."""
    u, _, vt = np.linalg.svd(matrix)
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt


def cross_matrix(v: np.ndarray) -> np.ndarray:
    """Return the matrices [..., 3, 3] of the cross product with v [..., 3]."""
    matrix = np.zeros((*v.shape, 3), v.dtype)
    matrix[..., 2, 1], matrix[..., 0, 2], matrix[..., 1, 0] = v[..., 0], v[..., 1], v[..., 2]
    matrix[..., 1, 2], matrix[..., 2, 0], matrix[..., 0, 1] = -v[..., 0], -v[..., 1], -v[..., 2]
    return matrix


def exponential(vector: np.ndarray) -> np.ndarray:
    """Return the rotation matrices [..., 3, 3] of rotation vectors [..., 3] in radians (Rodrigues)."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    k = cross_matrix(vector)
    a, b = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / 2 / np.pi) ** 2
    return np.eye(3) + a * k + b * (k @ k)


def logarithm(rotation: np.ndarray) -> np.ndarray:
    """Return rotation vectors [..., 3] in radians of matrices [..., 3, 3]: the inverse of `exponential` under half a turn."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    axis = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1) / 2
    sine = np.linalg.norm(axis, axis=-1)
    angle = np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2)
    return axis * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 1.0)[..., None]


def angle_deg(rotation: np.ndarray) -> np.ndarray:
    """Return the angles of rotation matrices [..., 3, 3] in degrees. They are exact for small angles too."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.linalg.norm(np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1), axis=-1) / 2
    return np.degrees(np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2))
