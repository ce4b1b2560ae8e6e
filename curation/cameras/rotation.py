"""Rotations from tracks: of frame pairs, robustly, for the choice of model; of all frames and the focal length together.

Points are px from the principal point. `turn[p]` takes a ray of the first frame of a pair to the second's camera.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_STEPS = 8  # of reweighting; outliers are a weapon in hand, 20 % at most
_POINTS = 120  # a pair; more do not move the median
_LEAST_POINTS = 15
_SCALE_PX = 0.7  # of the robust loss: the noise of a corner on a codec's picture
_MOST_STEPS = 25
_SETTLED = 1e-6


class Pairs(NamedTuple):
    """Frame pairs that share tracks: first, second int [P]; where the points lie, a, b f8 [P, K, 2]; used bool [P, K]."""

    first: np.ndarray
    second: np.ndarray
    a: np.ndarray
    b: np.ndarray
    used: np.ndarray


def pairs(points_NM2: np.ndarray, gaps: Sequence[int], every: int) -> Pairs:
    """Pairs of frames `gaps` apart, from every so many frames; at most 120 shared points each, spread over the tracks' ages."""
    seen = np.isfinite(points_NM2[:, :, 0])
    count, found = len(points_NM2), []
    for gap in sorted({gap for gap in gaps if 0 < gap < count}):
        for i in range(0, count - gap, every):
            shared = np.flatnonzero(seen[i] & seen[i + gap])
            if len(shared) >= _LEAST_POINTS:
                found.append((i, i + gap, shared[np.linspace(0, len(shared) - 1, min(len(shared), _POINTS)).astype(int)]))
    used = np.array([np.arange(_POINTS) < len(which) for *_, which in found], bool).reshape(-1, _POINTS)
    a, b = (np.zeros((len(found), _POINTS, 2)) for _ in range(2))
    for p, (i, j, which) in enumerate(found):
        a[p, : len(which)], b[p, : len(which)] = points_NM2[i, which], points_NM2[j, which]
    first, second = (np.array([pair[side] for pair in found], int) for side in (0, 1))
    return Pairs(first, second, a, b, used)


def rays(points: np.ndarray, focal: float) -> np.ndarray:
    """Directions [..., 3] with z = 1 of points [..., 2]."""
    return np.concatenate([points / focal, np.ones_like(points[..., :1])], -1)


def turns(found: Pairs, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """The rotation that best explains each pair, [P, 3, 3], and the px that it leaves at each point, [P, K] (NaN: unused)."""
    a, b = rays(found.a, focal), rays(found.b, focal)
    a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    weight = found.used.astype(float)
    for _ in range(_STEPS):
        turn = nearest(np.einsum("pk,pki,pkj->pij", weight, b, a))
        left = _left_px(found, a @ turn.transpose(0, 2, 1), focal)
        scale = np.maximum(1.5 * np.nanmedian(left, 1, keepdims=True), _SCALE_PX)
        weight = np.where(found.used, (1 + (np.nan_to_num(left) / scale) ** 2) ** -2.0, 0.0)
    return turn, left


def _left_px(found: Pairs, there: np.ndarray, focal: float) -> np.ndarray:
    ahead = np.maximum(there[..., 2:], 1e-3)
    left = np.linalg.norm(focal * there[..., :2] / ahead - found.b, axis=-1)
    return np.where(found.used, np.minimum(left, 1e4), np.nan)


class Refined(NamedTuple):
    """pose f8 [N, 3, 3] camera-to-world; focal px, and its standard error as a share of it for points good to a pixel (0 where
    it was held); left px [P, K] at each point of each pair, NaN where unused.
    """

    pose: np.ndarray
    focal_px: float
    focal_error: float
    left: np.ndarray


def refine(found: Pairs, pose_N33: np.ndarray, focal: float, held: bool) -> Refined:
    """Camera-to-world rotations and focal length that explain all pairs at once (Gauss-Newton, robust), from those given on.

    The first frame stays as it is. What a pair cannot see, such as an error of the focal length, adds up over a turn: together
    they determine it by the whole turn.
    """
    pose, left, error = pose_N33.copy(), found.a[..., 0], 0.0
    for _ in range(_MOST_STEPS):
        normal, gradient, left = _equations(found, pose, focal)
        if held:
            normal[0, :], normal[:, 0], gradient[0] = 0, 0, 0
            normal[0, 0] = 1
        normal += 1e-9 * np.trace(normal) / len(normal) * np.eye(len(normal))
        step = np.linalg.solve(normal, -gradient)
        focal *= float(np.exp(np.clip(step[0], -0.2, 0.2)))
        pose[1:] = nearest(pose[1:] @ exponential(step[1:].reshape(-1, 3)))
        if abs(step).max() < _SETTLED:
            break
    if not held:
        error = float(np.sqrt(np.linalg.inv(normal)[0, 0]))
    return Refined(pose, focal, error, left)


def _equations(found: Pairs, pose: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal matrix and gradient over (log focal, a rotation vector for each frame but the first), and px left [P, K]."""
    between = pose[found.second].transpose(0, 2, 1) @ pose[found.first]
    ray = rays(found.a, focal)
    there = np.einsum("pij,pkj->pki", between, ray)
    ahead = np.maximum(there[..., 2], 1e-3)
    seen = there[..., :2] / ahead[..., None]
    left = focal * seen - found.b
    distance = np.linalg.norm(left, axis=-1)
    weight = np.where(found.used, (1 + (distance / _SCALE_PX) ** 2) ** -2.0, 0.0)
    project = np.zeros((*seen.shape, 3))
    project[..., 0, 0] = project[..., 1, 1] = focal / ahead
    project[..., :, 2] = -focal * seen / ahead[..., None]
    # there = R_j' R_i ray: turning i by w adds -R_ij [ray]x w, turning j adds [there]x w.
    by_first = -np.einsum("pkab,pbc,pkcd->pkad", project, between, cross(ray))
    by_second = project @ cross(there)
    flat = np.concatenate([ray[..., :2], np.zeros_like(ray[..., :1])], -1)
    by_focal = focal * seen - np.einsum("pkab,pbc,pkc->pka", project, between, flat)
    jacobian = np.concatenate([by_focal[..., None], by_first, by_second], -1)
    blocks = np.einsum("pk,pkai,pkaj->pij", weight, jacobian, jacobian, optimize=True)
    slopes = np.einsum("pk,pkai,pka->pi", weight, jacobian, left, optimize=True)
    normal, gradient = _assembled(found, blocks, slopes, len(pose))
    return normal, gradient, np.where(found.used, distance, np.nan)


def _assembled(found: Pairs, blocks: np.ndarray, slopes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    size = 1 + 3 * count
    normal, gradient = np.zeros((size, size)), np.zeros(size)
    steps = np.arange(3)
    where = np.concatenate(
        [np.zeros((len(blocks), 1), int), 1 + 3 * found.first[:, None] + steps, 1 + 3 * found.second[:, None] + steps], 1
    )
    np.add.at(normal, (where[:, :, None], where[:, None, :]), blocks)
    np.add.at(gradient, where, slopes)
    free = np.r_[0, 4:size]  # the first frame's rotation is the world's
    return normal[np.ix_(free, free)], gradient[free]


def chained(found: Pairs, turn: np.ndarray, count: int) -> np.ndarray:
    """Camera-to-world rotations [N, 3, 3] from those of neighbouring frames; a missing one repeats the turn before it."""
    step = {int(i): turn[p] for p, (i, j) in enumerate(zip(found.first, found.second, strict=True)) if j == i + 1}
    pose, last = [np.eye(3)], np.eye(3)
    for i in range(count - 1):
        last = step.get(i, last)
        pose.append(pose[-1] @ last.T)
    return np.array(pose)


def nearest(matrix: np.ndarray) -> np.ndarray:
    """The rotations nearest to matrices [..., 3, 3] that rounding has made not quite so."""
    u, _, vt = np.linalg.svd(matrix)
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt


def cross(v: np.ndarray) -> np.ndarray:
    """The matrices [..., 3, 3] of the cross product with v [..., 3]."""
    found = np.zeros((*v.shape, 3), v.dtype)
    found[..., 2, 1], found[..., 0, 2], found[..., 1, 0] = v[..., 0], v[..., 1], v[..., 2]
    found[..., 1, 2], found[..., 2, 0], found[..., 0, 1] = -v[..., 0], -v[..., 1], -v[..., 2]
    return found


def exponential(vector: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3] in radians (Rodrigues)."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    k = cross(vector)
    a, b = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / 2 / np.pi) ** 2
    return np.eye(3) + a * k + b * (k @ k)


def logarithm(rotation: np.ndarray) -> np.ndarray:
    """Rotation vectors [..., 3] in radians of matrices [..., 3, 3]; the inverse of `exponential` under half a turn."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    axis = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1) / 2
    sine = np.linalg.norm(axis, axis=-1)
    angle = np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2)
    return axis * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 1.0)[..., None]


def angle_deg(rotation: np.ndarray) -> np.ndarray:
    """The angles of rotation matrices [..., 3, 3], in degrees; exact for small ones too."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.linalg.norm(np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1), axis=-1) / 2
    return np.degrees(np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2))
