"""Bundle adjustment: the poses, points and focal length that explain all observations best (Triggs et al. 2000).

Levenberg-Marquardt on Cauchy-weighted residuals, with the points eliminated (Schur complement). It runs in NumPy on one thread,
so equal input gives equal output.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from curation.cameras.rotation import exponential

_SCALE_PX = 1.0  # of the Cauchy weight; a corner in a compressed picture is accurate to half a pixel
_DAMPING_UP, _DAMPING_DOWN, _MIN_DAMPING = 8.0, 0.2, 1e-7
_CONVERGED = 1e-3  # relative decrease of the cost at which the adjustment stops
_MIN_DEPTH = 1e-6
_POINTS_PER_BLOCK = 256  # points that one matrix product eliminates


@dataclass(frozen=True)
class Problem:
    """Cameras, points, a focal length and the observations that tie them together.

    rotation f8 [K, 3, 3], translation f8 [K, 3]: world-to-camera. point f8 [T, 3]. focal: px. Observation o says that camera
    `camera_of[o]` sees point `point_of[o]` at `observed[o]` px from the principal point; observations are in the order of
    their points. fixed bool [K]: cameras that are not adjusted.
    """

    rotation: np.ndarray
    translation: np.ndarray
    point: np.ndarray
    focal: float
    camera_of: np.ndarray
    point_of: np.ndarray
    observed: np.ndarray
    fixed: np.ndarray

    def __post_init__(self) -> None:
        assert (np.diff(self.point_of) >= 0).all(), "observations must be in the order of their points"

    def residuals(self) -> np.ndarray:
        """Return the reprojection errors [O, 2] px. Behind the camera they are large."""
        return self.residuals_of(self.local_points())

    def residuals_of(self, local: np.ndarray) -> np.ndarray:
        """Return the reprojection errors [O, 2] px of points in camera coordinates [O, 3]."""
        depth = np.where(local[:, 2:] > _MIN_DEPTH, local[:, 2:], _MIN_DEPTH)
        return np.clip(self.focal * local[:, :2] / depth - self.observed, -1e4, 1e4)

    def local_points(self) -> np.ndarray:
        """Return the point of each observation in the coordinates of its camera, [O, 3]."""
        rotated = np.einsum("oij,oj->oi", self.rotation[self.camera_of], self.point[self.point_of])
        return rotated + self.translation[self.camera_of]

    def cost(self) -> float:
        residual = self.residuals()
        return float(np.log1p(np.einsum("oi,oi->o", residual, residual) / _SCALE_PX**2).sum())


def adjust(problem: Problem, steps: int, focal_fixed: bool) -> Problem:
    """Return the problem after at most `steps` steps.

    The scale is free and stays near its value; so does the position if no camera is fixed.
    """
    damping, cost = 1e-4, problem.cost()
    equations = None
    for _ in range(steps):
        equations = equations or _NormalEquations.of(problem, focal_fixed)
        candidate = equations.step(problem, damping)
        new_cost = candidate.cost()
        if new_cost >= cost:
            damping *= _DAMPING_UP
            continue
        converged = cost - new_cost < _CONVERGED * cost
        problem, cost, damping, equations = candidate, new_cost, max(damping * _DAMPING_DOWN, _MIN_DAMPING), None
        if converged:
            break
    return problem


def focal_error(problem: Problem) -> float:
    """Return the standard error of the focal length, as a share of it, for corners accurate to one px.

    It is infinite where the observations do not determine the focal length.
    """
    equations = _NormalEquations.of(problem, False)
    matrix, _ = equations.reduce(problem, np.linalg.inv(_damp(equations.v, _MIN_DAMPING)), _MIN_DAMPING)
    free = np.append(np.repeat(~problem.fixed, 6), True)
    variance = np.linalg.inv(matrix[np.ix_(free, free)])[-1, -1]
    return float(np.sqrt(variance)) if variance > 0 else float("inf")


@dataclass(frozen=True)
class _NormalEquations:
    """The normal equations at one estimate: blocks of cameras, of points, of both, and gradients.

    C is 6, or 7 where the focal length is free. The seventh column is its effect on each camera's observations.
    """

    u: np.ndarray  # [K, C, C]
    v: np.ndarray  # [T, 3, 3]
    w: np.ndarray  # [O, C, 3]
    camera_gradient: np.ndarray  # [K, C]
    point_gradient: np.ndarray  # [T, 3]

    @classmethod
    def of(cls, problem: Problem, focal_fixed: bool) -> "_NormalEquations":
        by_camera, by_point, residual, weight = jacobians(problem, focal_fixed)
        root = np.sqrt(weight)[:, None]
        by_camera, by_point, residual = by_camera * root[..., None], by_point * root[..., None], residual * root
        cameras, points = len(problem.rotation), len(problem.point)
        u, camera_gradient = normal_blocks(by_camera, residual, problem.camera_of, cameras)
        return cls(
            u,
            sum_by_index(by_point.transpose(0, 2, 1) @ by_point, problem.point_of, points),
            by_camera.transpose(0, 2, 1) @ by_point,
            camera_gradient,
            sum_by_index(np.einsum("oia,oi->oa", by_point, residual), problem.point_of, points),
        )

    def step(self, problem: Problem, damping: float) -> Problem:
        """Return the problem after one step with this damping."""
        inverse = np.linalg.inv(_damp(self.v, damping))
        matrix, gradient = self.reduce(problem, inverse, damping)
        free = np.append(np.repeat(~problem.fixed, 6), np.full(len(gradient) % 6, True))
        step = np.zeros(len(gradient))
        step[free] = np.linalg.solve(matrix[np.ix_(free, free)], -gradient[free])
        camera, focal = step[: 6 * len(problem.rotation)].reshape(-1, 6), step[6 * len(problem.rotation) :]
        columns = np.concatenate([camera, np.broadcast_to(focal, (len(camera), len(focal)))], 1)
        back = sum_by_index(np.einsum("oij,oi->oj", self.w, columns[problem.camera_of]), problem.point_of, len(problem.point))
        update = exponential(camera[:, :3])
        return replace(
            problem,
            rotation=update @ problem.rotation,
            translation=problem.translation + camera[:, 3:],
            point=problem.point - np.einsum("tij,tj->ti", inverse, self.point_gradient + back),
            focal=problem.focal * float(np.exp(np.clip(focal.sum(), -0.2, 0.2))),
        )

    def reduce(self, problem: Problem, inverse: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """Eliminate the points: matrix and gradient over 6 K pose parameters, and the focal length where it is free."""
        count, columns = self.camera_gradient.shape
        blocks = -self._point_coupling(problem, inverse).reshape(count, columns, count, columns)
        every = np.arange(count)
        blocks[every, :, every] += _damp(self.u, damping)
        point_step = np.einsum("tij,tj->ti", inverse, self.point_gradient)[problem.point_of]
        gradient = self.camera_gradient - sum_by_index(np.einsum("oij,oj->oi", self.w, point_step), problem.camera_of, count)
        return _merge_focal_columns(blocks), np.append(gradient[:, :6].ravel(), gradient[:, 6:].sum(0))

    def _point_coupling(self, problem: Problem, inverse: np.ndarray) -> np.ndarray:
        """Return how points couple cameras, [C K, C K]. It takes a few hundred points at a time, as few cameras see each."""
        half = self.w @ np.linalg.cholesky(inverse)[problem.point_of]
        columns = half.shape[1]
        matrix = np.zeros((columns * len(problem.rotation),) * 2)
        for first in range(0, len(problem.point), _POINTS_PER_BLOCK):
            which = slice(*np.searchsorted(problem.point_of, [first, first + _POINTS_PER_BLOCK]))
            camera, point = problem.camera_of[which], problem.point_of[which] - first
            if not len(camera):
                continue
            low, high = camera.min(), camera.max() + 1
            wide = np.zeros((high - low, columns, point[-1] + 1, 3))
            wide[camera - low, :, point] = half[which]
            flat = wide.reshape(columns * (high - low), -1)
            matrix[columns * low : columns * high, columns * low : columns * high] += flat @ flat.T
        return matrix


def _merge_focal_columns(blocks: np.ndarray) -> np.ndarray:
    """Return the matrix of blocks [K, C, K, C] over 6 K pose parameters and, if C is 7, the one focal length of all cameras."""
    count, columns = blocks.shape[:2]
    size = 6 * count
    matrix = np.empty((size + columns - 6,) * 2)
    matrix[:size, :size] = blocks[:, :6, :, :6].reshape(size, size)
    matrix[size:, :size] = blocks[:, 6:, :, :6].sum(0).reshape(-1, size)
    matrix[:size, size:] = matrix[size:, :size].T
    matrix[size:, size:] = blocks[:, 6:, :, 6:].sum((0, 2))
    return matrix


def normal_blocks(rows: np.ndarray, residual: np.ndarray, index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return J' J [size, C, C] and J' r [size, C] of the rows J [O, 2, C] and residuals r [O, 2] of each index."""
    gradient = sum_by_index(np.einsum("oia,oi->oa", rows, residual), index, size)
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(size + 1))
    rows = rows[order]
    blocks = np.empty((size, rows.shape[-1], rows.shape[-1]))
    for k, (first, last) in enumerate(pairwise(ends)):
        some = rows[first:last].reshape(-1, rows.shape[-1])
        blocks[k] = some.T @ some
    return blocks, gradient


def sum_by_index(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Return the sums [size, ...] of values [O, ...] that share an index."""
    flat = values.reshape(len(values), -1)
    columns = [np.bincount(index, flat[:, c], size) for c in range(flat.shape[1])]
    return np.stack(columns, 1).reshape(size, *values.shape[1:])


def _damp(blocks: np.ndarray, damping: float) -> np.ndarray:
    diagonal = np.einsum("nii->ni", blocks)
    return blocks + np.eye(blocks.shape[-1]) * (damping * diagonal + 1e-9 * diagonal.mean() + 1e-12)[:, :, None]


def jacobians(problem: Problem, focal_fixed: bool) -> tuple[np.ndarray, ...]:
    """Return the Jacobians of the residuals by camera and by point, the residuals [O, 2], and their weights [O].

    By camera [O, 2, 6]: rotation vector (applied on the left), translation. If the focal length is free, its logarithm is a
    seventh column. By point [O, 2, 3].
    """
    by_camera, residual, weight, near, sideways = camera_jacobians(problem, focal_fixed)
    rotation = problem.rotation[problem.camera_of]
    by_point = near[:, None, None] * (rotation[:, :2] - sideways[:, :, None] * rotation[:, 2:])
    return by_camera, by_point, residual, weight


def camera_jacobians(problem: Problem, focal_fixed: bool) -> tuple[np.ndarray, ...]:
    """Return the Jacobians by camera as `jacobians` does, the residuals and their weights.

    Then px of the picture per unit at each point [O], and x / z and y / z of each point [O, 2].
    """
    local = problem.local_points()
    residual = problem.residuals_of(local)
    behind = local[:, 2] <= _MIN_DEPTH
    near = problem.focal / np.where(behind, 1.0, local[:, 2])
    sideways = local[:, :2] * (near / problem.focal)[:, None]
    a, b = sideways.T
    x, y, z = (local - problem.translation[problem.camera_of]).T
    by_camera = np.empty((len(local), 2, 6 if focal_fixed else 7))
    for k, column in enumerate((-a * y, z + a * x, -y, 1.0, 0.0, -a)):
        by_camera[:, 0, k] = near * column
    for k, column in enumerate((-z - b * y, b * x, x, 0.0, 1.0, -b)):
        by_camera[:, 1, k] = near * column
    if not focal_fixed:
        by_camera[:, :, 6] = problem.focal * sideways
    weight = np.where(behind, 0.0, 1 / (1 + np.einsum("oi,oi->o", residual, residual) / _SCALE_PX**2))
    return by_camera, residual, weight, near, sideways
