"""Bundle adjustment: poses, points and the focal length that explain all observations best (Triggs et al. 2000).

Levenberg-Marquardt on Cauchy-weighted residuals with the points eliminated (Schur complement). NumPy on one thread: equal input
gives equal output.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from curation.cameras.rotation import cross, exponential

_SCALE_PX = 1.0  # of the Cauchy weight; a corner on a codec's picture is good to half a pixel
_WORSE, _BETTER, _LEAST_DAMPING = 8.0, 0.2, 1e-7
_SETTLED = 1e-3  # relative decrease of the cost at which it stops
_NEAR = 1e-6
_TOGETHER = 256  # points that are eliminated by one product of matrices


@dataclass(frozen=True)
class Problem:
    """turn f8 [K, 3, 3], shift f8 [K, 3]: world-to-camera; point f8 [T, 3]; focal px. Observation o: camera[o] sees point[o] at
    seen[o] px from the principal point, in the order of the points. held bool [K]: cameras that stay as they are.
    """

    turn: np.ndarray
    shift: np.ndarray
    point: np.ndarray
    focal: float
    camera: np.ndarray
    of_point: np.ndarray
    seen: np.ndarray
    held: np.ndarray

    def __post_init__(self) -> None:
        assert (np.diff(self.of_point) >= 0).all(), "observations must be in the order of their points"

    def left(self) -> np.ndarray:
        """Reprojection errors [O, 2] px; behind the camera they are large."""
        return self.left_of(self.local())

    def left_of(self, local: np.ndarray) -> np.ndarray:
        """The same, of what `local` says."""
        ahead = np.where(local[:, 2:] > _NEAR, local[:, 2:], _NEAR)
        return np.clip(self.focal * local[:, :2] / ahead - self.seen, -1e4, 1e4)

    def local(self) -> np.ndarray:
        """The point of each observation in its camera, [O, 3]."""
        return np.einsum("oij,oj->oi", self.turn[self.camera], self.point[self.of_point]) + self.shift[self.camera]

    def cost(self) -> float:
        left = self.left()
        return float(np.log1p(np.einsum("oi,oi->o", left, left) / _SCALE_PX**2).sum())


def adjust(problem: Problem, steps: int, focal_held: bool) -> Problem:
    """The problem after at most so many steps. Scale and, if no camera is held, place are free and stay near what they were."""
    damping, cost = 1e-4, problem.cost()
    system = None
    for _ in range(steps):
        system = system or _System.of(problem, focal_held)
        found = system.stepped(problem, damping)
        then = found.cost()
        if then >= cost:
            damping *= _WORSE
            continue
        settled = cost - then < _SETTLED * cost
        problem, cost, damping, system = found, then, max(damping * _BETTER, _LEAST_DAMPING), None
        if settled:
            break
    return problem


def focal_error(problem: Problem) -> float:
    """The standard error of the focal length as a share of it, for errors of a corner of one px; infinite where it is free."""
    system = _System.of(problem, False)
    matrix, _ = system.reduced(problem, np.linalg.inv(_damped(system.v, _LEAST_DAMPING)), _LEAST_DAMPING)
    free = np.append(np.repeat(~problem.held, 6), True)
    variance = np.linalg.inv(matrix[np.ix_(free, free)])[-1, -1]
    return float(np.sqrt(variance)) if variance > 0 else float("inf")


@dataclass(frozen=True)
class _System:
    """The normal equations at a point: blocks of cameras, of points, of both, and slopes.

    C is 6, or 7 where the focal length is free: the last column is what it does to each camera's observations.
    """

    u: np.ndarray  # [K, C, C]
    v: np.ndarray  # [T, 3, 3]
    w: np.ndarray  # [O, C, 3]
    slope_camera: np.ndarray  # [K, C]
    slope_point: np.ndarray  # [T, 3]

    @classmethod
    def of(cls, problem: Problem, focal_held: bool) -> "_System":
        by_camera, by_point, left, weight = jacobians(problem, focal_held)
        root = np.sqrt(weight)[:, None]
        by_camera, by_point, left = by_camera * root[..., None], by_point * root[..., None], left * root
        cameras, points = len(problem.turn), len(problem.point)
        u, slope_camera = normal(by_camera, left, problem.camera, cameras)
        return cls(
            u,
            summed(by_point.transpose(0, 2, 1) @ by_point, problem.of_point, points),
            by_camera.transpose(0, 2, 1) @ by_point,
            slope_camera,
            summed(np.einsum("oia,oi->oa", by_point, left), problem.of_point, points),
        )

    def stepped(self, problem: Problem, damping: float) -> Problem:
        """The problem after the step that this damping allows."""
        inverse = np.linalg.inv(_damped(self.v, damping))
        matrix, slope = self.reduced(problem, inverse, damping)
        free = np.append(np.repeat(~problem.held, 6), np.full(len(slope) % 6, True))
        step = np.zeros(len(slope))
        step[free] = np.linalg.solve(matrix[np.ix_(free, free)], -slope[free])
        camera, focal = step[: 6 * len(problem.turn)].reshape(-1, 6), step[6 * len(problem.turn) :]
        every = np.concatenate([camera, np.broadcast_to(focal, (len(camera), len(focal)))], 1)
        back = summed(np.einsum("oij,oi->oj", self.w, every[problem.camera]), problem.of_point, len(problem.point))
        more = exponential(camera[:, :3])
        return replace(
            problem,
            turn=more @ problem.turn,
            shift=problem.shift + camera[:, 3:],
            point=problem.point - np.einsum("tij,tj->ti", inverse, self.slope_point + back),
            focal=problem.focal * float(np.exp(np.clip(focal.sum(), -0.2, 0.2))),
        )

    def reduced(self, problem: Problem, inverse: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """The camera system, points eliminated: matrix and slope over 6 K poses, and the focal length where it is free."""
        count, columns = self.slope_camera.shape
        blocks = -self._through_points(problem, inverse).reshape(count, columns, count, columns)
        every = np.arange(count)
        blocks[every, :, every] += _damped(self.u, damping)
        settled = np.einsum("tij,tj->ti", inverse, self.slope_point)[problem.of_point]
        slope = self.slope_camera - summed(np.einsum("oij,oj->oi", self.w, settled), problem.camera, count)
        return _shared(blocks), np.append(slope[:, :6].ravel(), slope[:, 6:].sum(0))

    def _through_points(self, problem: Problem, inverse: np.ndarray) -> np.ndarray:
        """What the points tie cameras together by, [C K, C K]: a few hundred at a time, as they are seen by few cameras."""
        half = self.w @ np.linalg.cholesky(inverse)[problem.of_point]
        columns = half.shape[1]
        matrix = np.zeros((columns * len(problem.turn),) * 2)
        for first in range(0, len(problem.point), _TOGETHER):
            which = slice(*np.searchsorted(problem.of_point, [first, first + _TOGETHER]))
            camera, point = problem.camera[which], problem.of_point[which] - first
            if not len(camera):
                continue
            low, high = camera.min(), camera.max() + 1
            wide = np.zeros((high - low, columns, point[-1] + 1, 3))
            wide[camera - low, :, point] = half[which]
            flat = wide.reshape(columns * (high - low), -1)
            matrix[columns * low : columns * high, columns * low : columns * high] += flat @ flat.T
        return matrix


def _shared(blocks: np.ndarray) -> np.ndarray:
    """The matrix of blocks [K, C, K, C] over 6 K poses and, if there is a seventh column, the one focal length of all."""
    count, columns = blocks.shape[:2]
    size = 6 * count
    matrix = np.empty((size + columns - 6,) * 2)
    matrix[:size, :size] = blocks[:, :6, :, :6].reshape(size, size)
    matrix[size:, :size] = blocks[:, 6:, :, :6].sum(0).reshape(-1, size)
    matrix[:size, size:] = matrix[size:, :size].T
    matrix[size:, size:] = blocks[:, 6:, :, 6:].sum((0, 2))
    return matrix


def normal(rows: np.ndarray, left: np.ndarray, index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """J' J [size, C, C] and J' r [size, C] of the rows J [O, 2, C] and errors r [O, 2] of each index."""
    slope = summed(np.einsum("oia,oi->oa", rows, left), index, size)
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(size + 1))
    rows = rows[order]
    found = np.empty((size, rows.shape[-1], rows.shape[-1]))
    for k, (first, last) in enumerate(pairwise(ends)):
        some = rows[first:last].reshape(-1, rows.shape[-1])
        found[k] = some.T @ some
    return found, slope


def summed(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Values [O, ...] added up by their index: [size, ...]."""
    flat = values.reshape(len(values), -1)
    columns = [np.bincount(index, flat[:, c], size) for c in range(flat.shape[1])]
    return np.stack(columns, 1).reshape(size, *values.shape[1:])


def _damped(blocks: np.ndarray, damping: float) -> np.ndarray:
    diagonal = np.einsum("nii->ni", blocks)
    return blocks + np.eye(blocks.shape[-1]) * (damping * diagonal + 1e-9 * diagonal.mean() + 1e-12)[:, :, None]


def jacobians(problem: Problem, focal_held: bool) -> tuple[np.ndarray, ...]:
    """Of the errors [O, 2], which come third: by camera [O, 2, 6] (rotation vector on the left, shift; with log focal as a
    seventh where it is not held), by point [O, 2, 3]; and their weights [O].
    """
    local = problem.local()
    left = problem.left_of(local)
    behind = local[:, 2] <= _NEAR
    ahead = np.where(behind, 1.0, local[:, 2])
    by_camera = np.zeros((len(local), 2, 6 if focal_held else 7))
    project = by_camera[:, :, 3:6]
    project[:, 0, 0] = project[:, 1, 1] = problem.focal / ahead
    project[:, :, 2] = -problem.focal * local[:, :2] / ahead[:, None] ** 2
    by_camera[:, :, :3] = -project @ cross(local - problem.shift[problem.camera])
    if not focal_held:
        by_camera[:, :, 6] = problem.focal * local[:, :2] / ahead[:, None]
    weight = np.where(behind, 0.0, 1 / (1 + np.einsum("oi,oi->o", left, left) / _SCALE_PX**2))
    return by_camera, project @ problem.turn[problem.camera], left, weight
