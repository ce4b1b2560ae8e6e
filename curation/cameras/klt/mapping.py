"""Structure from motion on tracks: from the pair of frames with most parallax outwards, frame by frame, adjusted as it grows.

A clip is a chain: each frame's pose is a few steps from the one before, so it is found against the points that are mapped
already; at keyframes new points are triangulated and the last ones adjusted, at the end everything together.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np

from curation.cameras import rotation
from curation.cameras.klt.bundle_adjust import Problem, adjust, focal_error
from curation.cameras.klt.resection import Sight, resect

_PARALLAX_PX = 12.0  # of the first pair, after the best rotation: more costs shared tracks and gains no depth
_PARALLAX_LEAST_PX = 2.0
_NEAR_SHARE = 0.75
_STARTS, _STARTS_APART = 5, 1 / 3  # pairs to begin with, and how much of the clip lies between them if it can
_LEAST_STARTS = 3  # that have any parallax at all
_SHARED = 120  # tracks of the first pair; more is no better
_REACH = (3, 5, 8, 12, 17, 24, 34, 48)  # frames apart, of the first pair
_MOVED_PX, _LASTING_S, _KEPT = 33.0, 0.35, 0.6  # from keyframe to keyframe: motion, time, share of tracks
LEAST_INLIERS = 12  # a pose on fewer points is a guess
_SURE_SHARE = 0.75  # of the mapped points in sight; under it the start may have been too far off
_WINDOW, _HELD = 8, 3  # keyframes adjusted together while growing, of which the oldest stay
_LOOK_BACK = 24  # keyframes a point is triangulated from
_LEAST_ANGLE_DEG = 0.5
_FIT_PX, _WRONG_PX = 2.5, 3.0
_VIEWS = 12  # of a point that the last adjustment uses: a point seen by all keyframes costs their number squared


class Map(NamedTuple):
    """frames int [K], the keyframes with a pose; turn [K, 3, 3], shift [K, 3] world-to-camera; track int [T], which tracks are
    points; point f8 [T, 3]; focal_px and its standard error as a share; reached: the share of the clip's frames with a pose.
    """

    frames: np.ndarray
    turn: np.ndarray
    shift: np.ndarray
    track: np.ndarray
    point: np.ndarray
    focal_px: float
    focal_error: float
    reached: float

    @property
    def pose(self) -> np.ndarray:
        """Camera-to-world [K, 4, 4]."""
        found = np.tile(np.eye(4), (len(self.frames), 1, 1))
        found[:, :3, :3] = self.turn.transpose(0, 2, 1)
        found[:, :3, 3] = -np.einsum("kji,kj->ki", self.turn, self.shift)
        return found


class Pair(NamedTuple):
    """Two frames to begin with; score: 0 to 1, parallax times shared tracks."""

    first: int
    second: int
    score: float


def first_pairs(points_NM2: np.ndarray, focal: float) -> list[Pair]:
    """Pairs of frames with most parallax over most shared tracks, far from each other, best first; none where there is none."""
    every = max(1, len(points_NM2) // 24)
    found = rotation.pairs(points_NM2, _REACH, every)
    if not len(found.first):
        return []
    left = rotation.turns(found, focal)[1]
    parallax = np.nanmedian(left, 1)
    if (parallax >= _PARALLAX_LEAST_PX).sum() < _LEAST_STARTS:  # most of it is far away: a walk over open ground
        parallax = np.nanquantile(left, _NEAR_SHARE, 1)
    seen = np.isfinite(points_NM2[:, :, 0])
    shared = np.array([(seen[i] & seen[j]).sum() for i, j in zip(found.first, found.second, strict=True)])
    score = np.minimum(parallax / _PARALLAX_PX, 1) * np.minimum(shared / _SHARED, 1)
    score = np.where(parallax >= _PARALLAX_LEAST_PX, score, 0.0)
    best: list[Pair] = []
    while len(best) < _STARTS and score.any():
        k = int(np.argmax(score))
        best.append(Pair(int(found.first[k]), int(found.second[k]), float(score[k])))
        score = score * np.minimum(np.abs(found.first - found.first[k]) / (len(points_NM2) * _STARTS_APART), 1)
    return best


def reconstruct(points_NM2: np.ndarray, times_s: np.ndarray, pair: Pair, focal: float, focal_held: bool) -> Map | None:
    """The map of a clip, begun with a pair of frames; None where that is no beginning. Points in px from the principal point,
    NaN where unseen.

    focal: known, and then held, or where to begin.
    """
    growth = _Growth(points_NM2.astype(np.float64), times_s, focal)
    if not growth.begin(pair):
        return None
    growth.on(range(pair.second + 1, len(times_s)))
    growth.on(range(pair.first - 1, -1, -1))
    found = growth.finished(focal_held)
    return found if len(found.track) else None


@dataclass
class _Growth:
    """Poses of the frames reached so far (world-to-camera), keyframes in order of growth, points."""

    xy: np.ndarray
    times_s: np.ndarray
    focal: float
    keyframes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        frames, tracks = self.xy.shape[:2]
        self.seen = np.isfinite(self.xy[:, :, 0])
        self.known = np.zeros(frames, bool)
        self.turn, self.shift = np.tile(np.eye(3), (frames, 1, 1)), np.zeros((frames, 3))
        self.point = np.full((tracks, 3), np.nan)

    def begin(self, pair: Pair) -> bool:
        """Two poses from the essential matrix, the frames between them by resection."""
        both = np.flatnonzero(self.seen[pair.first] & self.seen[pair.second])
        a, b = (self.xy[i, both] / self.focal for i in pair[:2])
        essential, mask = cv2.findEssentialMat(a, b, np.eye(3), cv2.USAC_MAGSAC, 0.999, 1.0 / self.focal)
        if essential is None or essential.shape != (3, 3):
            return False
        _, turn, shift, _ = cv2.recoverPose(essential, a, b, np.eye(3), mask=mask)
        self._place(pair.first, np.eye(3), np.zeros(3))
        self._place(pair.second, turn, shift[:, 0])
        self.keyframes = [pair.first, pair.second]
        self._map(both)
        if self._mapped(pair.second) < LEAST_INLIERS:
            return False
        self._adjust(np.array([pair.first, pair.second]), held=1)
        between = list(range(pair.first + 1, pair.second))
        for frame in between:
            if not self._reach(frame, frame - 1):
                return False
        self.keyframes = sorted({pair.first, *between[len(between) // 3 :: max(1, len(between) // 3)], pair.second})
        self._map(both)
        return bool(np.isfinite(self.point[:, 0]).sum() >= LEAST_INLIERS)

    def _place(self, frame: int, turn: np.ndarray, shift: np.ndarray) -> None:
        # Each prediction multiplies three of these: what is not orthonormal grows 2.4-fold a frame.
        self.turn[frame], self.shift[frame], self.known[frame] = rotation.nearest(turn), shift, True

    def on(self, frames: range) -> None:
        """Grow along consecutive frames until they end or the map is out of sight."""
        if not len(frames):
            return
        back = -frames.step
        self.keyframes = sorted(self.keyframes, reverse=frames.step < 0)
        for frame in frames:
            if not self._reach(frame, frame + back, frame + 2 * back):
                return
            if frame == frames[-1] or self._moved_on(frame):
                self.keyframes.append(frame)
                self._map(np.flatnonzero(self.seen[frame]))
                window = np.array(self.keyframes[-_WINDOW:])
                self._adjust(window, held=min(_HELD, max(1, len(window) - 2)))

    def _reach(self, frame: int, before: int, further: int | None = None) -> bool:
        """The pose of a frame from the points in it, beginning where the motion so far leads."""
        which = np.flatnonzero(self.seen[frame] & np.isfinite(self.point[:, 0]))
        if len(which) < LEAST_INLIERS:
            return False
        best, share = self._resected(frame, which, *self._starts(before, further))
        if share < _SURE_SHARE:
            searched = self._searched(frame, which)
            again, then = self._resected(frame, which, *searched) if searched else (best, share)
            best, share = (again, then) if then > share else (best, share)
        self._place(frame, *best)
        return share * len(which) >= LEAST_INLIERS

    def _starts(self, before: int, further: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Poses to begin at: that of the frame before, and one as far on as it is from the one before it."""
        turn, shift = self.turn[before], self.shift[before]
        if further is None or not 0 <= further < len(self.known) or not self.known[further]:
            return turn[None], shift[None]
        step = turn @ self.turn[further].T
        on = step @ shift + shift - step @ self.shift[further]
        return np.stack([step @ turn, turn]), np.stack([on, shift])

    def _resected(
        self, frame: int, which: np.ndarray, turn: np.ndarray, shift: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        """The best pose from several starts, and the share of the points that fit."""
        starts = len(turn)
        world, seen = (np.broadcast_to(v, (starts, *v.shape)) for v in (self.point[which], self.xy[frame, which]))
        found = resect(Sight(world, seen, np.ones((starts, len(which)), bool)), turn, shift, self.focal)
        share = (found.distance < _FIT_PX).mean(1)
        best = int(np.argmax(share))
        return (found.turn[best], found.shift[best]), float(share[best])

    def _searched(self, frame: int, which: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the motion broke off, as when a player hits a wall: a pose by RANSAC, whatever came before."""
        camera = np.diag([self.focal, self.focal, 1.0])
        cv2.setRNGSeed(1)
        found, vector, shift, _ = cv2.solvePnPRansac(
            self.point[which],
            self.xy[frame, which],
            camera,
            None,
            None,
            None,
            False,
            200,
            _FIT_PX,
            0.999,
            None,
            cv2.SOLVEPNP_SQPNP,
        )
        return (rotation.exponential(vector[None, :, 0]), shift[None, :, 0]) if found else None

    def _moved_on(self, frame: int) -> bool:
        last = self.keyframes[-1]
        both = self.seen[last] & self.seen[frame]
        moved = np.median(np.linalg.norm(self.xy[frame, both] - self.xy[last, both], axis=1)) if both.any() else np.inf
        few = both.sum() < _KEPT * self.seen[last].sum() or self._mapped(frame) < _KEPT * self._mapped(last)
        return bool(moved > _MOVED_PX or few or abs(self.times_s[frame] - self.times_s[last]) > _LASTING_S)

    def _mapped(self, frame: int) -> int:
        return int((self.seen[frame] & np.isfinite(self.point[:, 0])).sum())

    def _map(self, tracks: np.ndarray) -> None:
        """Triangulate tracks anew from the last keyframes."""
        frames = np.array(self.keyframes[-_LOOK_BACK:])
        point = triangulated(
            self.xy[np.ix_(frames, tracks)],
            self.seen[np.ix_(frames, tracks)],
            self.turn[frames],
            self.shift[frames],
            self.focal,
        )
        self.point[tracks] = np.where(np.isfinite(point), point, self.point[tracks])

    def _adjust(self, frames: np.ndarray, held: int, steps: int = 2) -> None:
        problem, tracks = self._problem(frames, held, len(frames))
        found = adjust(problem, steps, focal_held=True)
        self.turn[frames], self.shift[frames], self.point[tracks] = rotation.nearest(found.turn), found.shift, found.point

    def _problem(self, frames: np.ndarray, held: int, views: int) -> tuple[Problem, np.ndarray]:
        """What these keyframes see of the points that at least two of them see; at most `views` of each, spread."""
        mapped = np.flatnonzero(np.isfinite(self.point[:, 0]))
        seen = self.seen[np.ix_(frames, mapped)]
        rank, count = np.cumsum(seen, 0) - 1, seen.sum(0)
        spread = np.floor(rank * np.minimum(views, count) / np.maximum(count, 1))
        before = np.floor((rank - 1) * np.minimum(views, count) / np.maximum(count, 1))
        of, camera = np.nonzero((seen & ((rank == 0) | (spread > before)) & (count >= 2)).T)
        used, of_point = np.unique(of, return_inverse=True)
        tracks = mapped[used]
        still = np.arange(len(frames)) < held
        observed = self.xy[frames[camera], mapped[of]]
        problem = Problem(
            self.turn[frames], self.shift[frames], self.point[tracks], self.focal, camera, of_point, observed, still
        )
        return problem, tracks

    def finished(self, focal_held: bool) -> Map:
        """Everything adjusted together, twice: observations that do not fit are left out of the second time."""
        frames = np.array(sorted(set(self.keyframes)))
        problem, tracks = self._problem(frames, 1, _VIEWS)
        problem = adjust(problem, 15, focal_held)
        problem = adjust(_cleaned(problem), 15, focal_held)
        used = np.bincount(problem.of_point, minlength=len(tracks)) >= 3
        error = 0.0 if focal_held else focal_error(problem)
        reached = float(self.known.mean())
        return Map(frames, problem.turn, problem.shift, tracks[used], problem.point[used], problem.focal, error, reached)


def _cleaned(problem: Problem) -> Problem:
    fits = np.linalg.norm(problem.left(), axis=1) < _WRONG_PX
    fits &= np.bincount(problem.of_point, fits, len(problem.point))[problem.of_point] >= 2
    return replace(problem, camera=problem.camera[fits], of_point=problem.of_point[fits], seen=problem.seen[fits])


def triangulated(xy_LC2: np.ndarray, seen_LC: np.ndarray, turn: np.ndarray, shift: np.ndarray, focal: float) -> np.ndarray:
    """Points [C, 3] from what L cameras see; NaN where rays are too parallel or do not meet."""
    ray = rotation.rays(np.nan_to_num(xy_LC2), focal) @ turn
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    centre = -np.einsum("lji,lj->li", turn, shift)
    weight = seen_LC.astype(float)
    for _ in range(3):
        across = (np.eye(3) - ray[..., :, None] * ray[..., None, :]) * weight[..., None, None]
        matrix = across.sum(0) + 1e-9 * np.eye(3)
        point = np.linalg.solve(matrix, np.einsum("lcij,lj->ci", across, centre)[..., None])[..., 0]
        away = point[None] - centre[:, None]
        weight = seen_LC / np.maximum((away**2).sum(-1), 1e-12)  # errors are of angle, not of distance
        weight /= np.maximum(weight.max(0), 1e-30)
    depth = (away * ray).sum(-1)
    off = np.linalg.norm(away - depth[..., None] * ray, axis=-1) / np.maximum(depth, 1e-12) * focal
    first = ray[np.argmax(seen_LC, 0), np.arange(ray.shape[1])]
    cosine = np.where(seen_LC, (ray * first).sum(-1), 1).min(0)
    meets = np.where(seen_LC, (depth > 0) & (off < _FIT_PX), True).all(0)
    wide = cosine < np.cos(np.radians(_LEAST_ANGLE_DEG))
    return np.where((meets & wide & (seen_LC.sum(0) >= 2))[:, None], point, np.nan)
