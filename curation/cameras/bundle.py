"""Bundle adjustment: poses, points and the focal length that explain all observations best (Triggs et al. 2000).

Levenberg-Marquardt on Cauchy-weighted residuals with the points eliminated (Schur complement). NumPy on one thread: equal input
gives equal output.
"""

from dataclasses import dataclass, replace

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
        local = self._local()
        ahead = np.where(local[:, 2:] > _NEAR, local[:, 2:], _NEAR)
        return np.clip(self.focal * local[:, :2] / ahead - self.seen, -1e4, 1e4)

    def _local(self) -> np.ndarray:
        return np.einsum("oij,oj->oi", self.turn[self.camera], self.point[self.of_point]) + self.shift[self.camera]

    def cost(self) -> float:
        return float(np.log1p((self.left() ** 2).sum(1) / _SCALE_PX**2).sum())


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
    inverse = np.linalg.inv(_damped(system.v, _LEAST_DAMPING))
    matrix, _ = system._reduced(problem, inverse, _LEAST_DAMPING)
    free = np.append(np.repeat(~problem.held, 6), True)
    variance = np.linalg.inv(matrix[np.ix_(free, free)])[-1, -1]
    return float(np.sqrt(variance)) if variance > 0 else float("inf")


@dataclass(frozen=True)
class _System:
    """The normal equations at a point: blocks of cameras, points, both, and of the focal length with each."""

    focal_held: bool
    u: np.ndarray  # [K, 6, 6]
    v: np.ndarray  # [T, 3, 3]
    w: np.ndarray  # [O, 6, 3]
    slope_camera: np.ndarray  # [K, 6]
    slope_point: np.ndarray  # [T, 3]
    focal_camera: np.ndarray  # [K, 6]
    focal_point: np.ndarray  # [T, 3]
    focal_focal: float
    slope_focal: float

    @classmethod
    def of(cls, problem: Problem, focal_held: bool) -> "_System":
        by_camera, by_point, by_focal, left, weight = _jacobians(problem)
        cameras, points = len(problem.turn), len(problem.point)
        weighted = by_camera * weight[:, None, None]
        weighted_point = by_point * weight[:, None, None]

        def summed(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
            flat = values.reshape(len(values), -1)
            columns = [np.bincount(index, flat[:, c], size) for c in range(flat.shape[1])]
            return np.stack(columns, 1).reshape(size, *values.shape[1:])

        return cls(
            focal_held,
            summed(weighted.transpose(0, 2, 1) @ by_camera, problem.camera, cameras),
            summed(weighted_point.transpose(0, 2, 1) @ by_point, problem.of_point, points),
            weighted.transpose(0, 2, 1) @ by_point,
            summed((weighted * left[..., None]).sum(1), problem.camera, cameras),
            summed((weighted_point * left[..., None]).sum(1), problem.of_point, points),
            summed((weighted * by_focal[..., None]).sum(1), problem.camera, cameras),
            summed((weighted_point * by_focal[..., None]).sum(1), problem.of_point, points),
            float((weight[:, None] * by_focal**2).sum()),
            float((weight[:, None] * by_focal * left).sum()),
        )

    def stepped(self, problem: Problem, damping: float) -> Problem:
        """The problem after the step that this damping allows."""
        inverse = np.linalg.inv(_damped(self.v, damping))
        matrix, slope = self._reduced(problem, inverse, damping)
        free = np.append(np.repeat(~problem.held, 6), not self.focal_held)
        step = np.zeros(len(slope))
        step[free] = np.linalg.solve(matrix[np.ix_(free, free)], -slope[free])
        camera, focal = step[:-1].reshape(-1, 6), step[-1]
        back = np.einsum("oij,oi->oj", self.w, camera[problem.camera])
        gathered = np.stack([np.bincount(problem.of_point, back[:, c], len(problem.point)) for c in range(3)], 1)
        point = -np.einsum("tij,tj->ti", inverse, self.slope_point + gathered + self.focal_point * focal)
        more = exponential(camera[:, :3])
        return replace(
            problem,
            turn=more @ problem.turn,
            shift=problem.shift + camera[:, 3:],
            point=problem.point + point,
            focal=problem.focal * float(np.exp(np.clip(focal, -0.2, 0.2))),
        )

    def _reduced(self, problem: Problem, inverse: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """The camera system, points eliminated: matrix [6 K + 1, 6 K + 1] and slope; the focal length comes last."""
        count, y = len(problem.turn), self.w @ inverse[problem.of_point]
        matrix = np.zeros((6 * count + 1, 6 * count + 1))
        matrix[:-1, :-1] = -self._through_points(problem, inverse)
        blocks = matrix[:-1, :-1].reshape(count, 6, count, 6)
        every = np.arange(count)
        blocks[every, :, every] += _damped(self.u, damping)
        focal_side = np.einsum("tij,tj->ti", inverse, self.focal_point)

        def through(points: np.ndarray) -> np.ndarray:
            each = np.einsum("oij,oj->oi", y, points[problem.of_point])
            return np.stack([np.bincount(problem.camera, each[:, c], count) for c in range(6)], 1).ravel()

        matrix[-1, :-1] = matrix[:-1, -1] = self.focal_camera.ravel() - through(self.focal_point)
        matrix[-1, -1] = self.focal_focal * (1 + damping) - (self.focal_point * focal_side).sum()
        slope = np.append(
            self.slope_camera.ravel() - through(self.slope_point), self.slope_focal - (focal_side * self.slope_point).sum()
        )
        return matrix, slope

    def _through_points(self, problem: Problem, inverse: np.ndarray) -> np.ndarray:
        """What the points tie cameras together by, [6 K, 6 K]: a few hundred at a time, as they are seen by few cameras."""
        half = self.w @ np.linalg.cholesky(inverse)[problem.of_point]
        matrix = np.zeros((6 * len(problem.turn),) * 2)
        for first in range(0, len(problem.point), _TOGETHER):
            which = slice(*np.searchsorted(problem.of_point, [first, first + _TOGETHER]))
            camera, point = problem.camera[which], problem.of_point[which] - first
            if not len(camera):
                continue
            low, high = camera.min(), camera.max() + 1
            wide = np.zeros((high - low, 6, point[-1] + 1, 3))
            wide[camera - low, :, point] = half[which]
            flat = wide.reshape(6 * (high - low), -1)
            matrix[6 * low : 6 * high, 6 * low : 6 * high] += flat @ flat.T
        return matrix


def _damped(blocks: np.ndarray, damping: float) -> np.ndarray:
    diagonal = np.einsum("nii->ni", blocks)
    return blocks + np.eye(blocks.shape[-1]) * (damping * diagonal + 1e-9 * diagonal.mean() + 1e-12)[:, :, None]


def _jacobians(problem: Problem) -> tuple[np.ndarray, ...]:
    """By camera [O, 2, 6] (rotation vector on the left, shift), by point [O, 2, 3], by log focal [O, 2]; errors [O, 2]; weights
    [O].
    """
    local, left = problem._local(), problem.left()
    behind = local[:, 2] <= _NEAR
    ahead = np.where(behind, 1.0, local[:, 2])
    project = np.zeros((len(local), 2, 3))
    project[:, 0, 0] = project[:, 1, 1] = problem.focal / ahead
    project[:, :, 2] = -problem.focal * local[:, :2] / ahead[:, None] ** 2
    turned = local - problem.shift[problem.camera]
    by_camera = np.concatenate([-project @ cross(turned), project], -1)
    by_point = project @ problem.turn[problem.camera]
    by_focal = problem.focal * local[:, :2] / ahead[:, None]
    weight = np.where(behind, 0.0, 1 / (1 + (left**2).sum(1) / _SCALE_PX**2))
    return by_camera, by_point, by_focal, left, weight
