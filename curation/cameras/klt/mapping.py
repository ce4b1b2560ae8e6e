"""Structure from motion on tracks: from the pair of frames with most parallax outwards, frame by frame, adjusted as it grows.

A clip is a chain: each frame's pose is a few steps from the one before, so it is found from the points that are mapped already.
At keyframes new points are triangulated and the last keyframes adjusted. At the end everything is adjusted together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np

from curation.cameras.klt.bundle_adjust import Problem, adjust, focal_error
from curation.cameras.klt.resection import Observations, resect
from curation.cameras.rotation import exponential, frame_pairs, logarithm, nearest_rotation, pair_rotations, rays

_PARALLAX_PX = 12.0  # of the first pair, after the best rotation: more costs shared tracks and gains no depth
_MIN_PARALLAX_PX = 2.0
_NEAR_SHARE = 0.75
_STARTS, _STARTS_SPACING = 5, 1 / 3  # pairs to start from, and how much of the clip lies between them if possible
_MIN_STARTS = 3  # that have any parallax at all
_START_STEPS = 4  # of reweighting: pairs are only compared
_SHARED = 120  # tracks of the first pair; more is no better
_PAIR_GAPS = (3, 5, 8, 12, 17, 24, 34, 48)  # frames between the two of the first pair
_KEYFRAME_PX, _KEYFRAME_S, _KEYFRAME_SHARE = 33.0, 0.35, 0.6  # from keyframe to keyframe: motion, time, share of tracks
_REGISTER_S = 0.06  # between the frames that a growing map registers where that is easy
_POINTS = 160  # that register a frame; more add cost, not accuracy
_TRIALS = 100  # samples that find a pose where the motion before does not lead to one
MIN_INLIERS = 12  # a pose from fewer points is a guess
_SURE_SHARE = 0.75  # of the visible mapped points; with fewer, the start may have been too far off
_WINDOW, _FIXED = 8, 3  # keyframes adjusted together while growing, of which the oldest stay
_TRIANGULATION_KEYFRAMES = 24  # that a point is triangulated from
_MIN_ANGLE_DEG = 0.5
_FIT_PX, _OUTLIER_PX = 2.5, 3.0
_VIEWS = 12  # of a point that the last adjustment uses: a point seen by all keyframes costs their number squared


class Map(NamedTuple):
    """A reconstruction of a clip.

    frames int [K]: the keyframes. rotation [K, 3, 3], translation [K, 3]: their poses, world-to-camera. track int [T]: the
    tracks that are points. point f8 [T, 3]. focal_px, focal_error: the focal length and its standard error as a share of it.
    posed: bool [N], the frames of the clip that the map reaches.
    """

    frames: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    track: np.ndarray
    point: np.ndarray
    focal_px: float
    focal_error: float
    posed: np.ndarray

    @property
    def registered(self) -> float:
        """Share of the clip's frames that the map reaches."""
        return float(self.posed.mean())

    @property
    def pose(self) -> np.ndarray:
        """Camera-to-world poses of the keyframes [K, 4, 4]."""
        pose = np.tile(np.eye(4), (len(self.frames), 1, 1))
        pose[:, :3, :3] = self.rotation.transpose(0, 2, 1)
        pose[:, :3, 3] = -np.einsum("kji,kj->ki", self.rotation, self.translation)
        return pose


class InitialPair(NamedTuple):
    """Two frames to start a map from. score: 0 to 1, parallax times shared tracks."""

    first: int
    second: int
    score: float


class StartPairs(NamedTuple):
    """Frame pairs that a map of a clip of N `frames` can start from: the two frames int [P], and scores f8 [P] as above."""

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray
    frames: int

    @classmethod
    def of(cls, points_NM2: np.ndarray, focal: float) -> "StartPairs":
        """Score pairs of frames by parallax and shared tracks. Points are in px from the principal point."""
        every = max(1, len(points_NM2) // 24)
        pairs = frame_pairs(points_NM2, _PAIR_GAPS, every)
        if not len(pairs.first):
            return cls(pairs.first, pairs.second, np.empty(0), len(points_NM2))
        residual = pair_rotations(pairs, focal, _START_STEPS)[1]
        parallax = np.nanmedian(residual, 1)
        if (parallax >= _MIN_PARALLAX_PX).sum() < _MIN_STARTS:  # most of it is far away: a walk over open ground
            parallax = np.nanquantile(residual, _NEAR_SHARE, 1)
        visible = np.isfinite(points_NM2[:, :, 0])
        shared = np.array([(visible[i] & visible[j]).sum() for i, j in zip(pairs.first, pairs.second, strict=True)])
        score = np.minimum(parallax / _PARALLAX_PX, 1) * np.minimum(shared / _SHARED, 1)
        return cls(pairs.first, pairs.second, np.where(parallax >= _MIN_PARALLAX_PX, score, 0.0), len(points_NM2))

    def best(self, earlier: Sequence[InitialPair], wanted: np.ndarray | None = None) -> InitialPair | None:
        """Return the best pair that is far from those that maps were started from; None where there is none.

        wanted bool [N]: frames that the pair should be in.
        """
        score = self.score
        for pair in earlier:
            score = score * np.minimum(np.abs(self.first - pair.first) / (self.frames * _STARTS_SPACING), 1)
        if wanted is not None:
            inside = np.concatenate([[0], np.cumsum(wanted)])
            score = score * (inside[self.second + 1] - inside[self.first]) / (self.second + 1 - self.first)
        if not score.any():
            return None
        k = int(np.argmax(score))
        return InitialPair(int(self.first[k]), int(self.second[k]), float(score[k]))


def initial_pairs(points_NM2: np.ndarray, focal: float) -> list[InitialPair]:
    """Return pairs of frames with most parallax and most shared tracks, far from each other, best first."""
    starts, pairs = StartPairs.of(points_NM2, focal), list[InitialPair]()
    while len(pairs) < _STARTS and (pair := starts.best(pairs)):
        pairs.append(pair)
    return pairs


def reconstruct(points_NM2: np.ndarray, times_s: np.ndarray, pair: InitialPair, focal: float, focal_fixed: bool) -> Map | None:
    """Return the map of a clip, grown from a pair of frames; None where the pair gives no start.

    Points are in px from the principal point, NaN where not visible. focal: px, the start of the search unless it is fixed.
    """
    builder = _MapBuilder(points_NM2.astype(np.float64), times_s, focal)
    if not builder.start(pair):
        return None
    builder.extend(range(pair.second + 1, len(times_s)))
    builder.extend(range(pair.first - 1, -1, -1))
    finished = builder.finish(focal_fixed)
    return finished if len(finished.track) else None


@dataclass
class _MapBuilder:
    """A growing map: poses of the frames registered so far (world-to-camera), keyframes in order of growth, points."""

    xy: np.ndarray
    times_s: np.ndarray
    focal: float
    keyframes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        frames, tracks = self.xy.shape[:2]
        self.visible = np.isfinite(self.xy[:, :, 0])
        self.registered = np.zeros(frames, bool)
        frame_s = float(np.median(np.diff(self.times_s))) if frames > 1 else _REGISTER_S
        self.stride = max(1, round(_REGISTER_S / max(frame_s, 1e-3)))
        self.rotation, self.translation = np.tile(np.eye(3), (frames, 1, 1)), np.zeros((frames, 3))
        self.point = np.full((tracks, 3), np.nan)

    def start(self, pair: InitialPair) -> bool:
        """Register the pair from its essential matrix, and the frames between by resection. Return whether that worked."""
        both = np.flatnonzero(self.visible[pair.first] & self.visible[pair.second])
        a, b = (self.xy[i, both] / self.focal for i in pair[:2])
        essential, mask = cv2.findEssentialMat(a, b, np.eye(3), cv2.USAC_MAGSAC, 0.999, 1.0 / self.focal)
        if essential is None or essential.shape != (3, 3):
            return False
        _, rotation, translation, _ = cv2.recoverPose(essential, a, b, np.eye(3), mask=mask)
        self._set_pose(pair.first, np.eye(3), np.zeros(3))
        self._set_pose(pair.second, rotation, translation[:, 0])
        self.keyframes = [pair.first, pair.second]
        self._triangulate(both)
        if self._mapped_count(pair.second) < MIN_INLIERS:
            return False
        self._adjust(np.array([pair.first, pair.second]), fixed=1)
        between = list(range(pair.first + self.stride, pair.second, self.stride))
        for frame in between:
            if not self._register(frame, frame - self.stride, self._earlier(frame - self.stride, 1)):
                return False
        self.keyframes = sorted({pair.first, *between[len(between) // 3 :: max(1, len(between) // 3)], pair.second})
        self._triangulate(both)
        return bool(np.isfinite(self.point[:, 0]).sum() >= MIN_INLIERS)

    def _set_pose(self, frame: int, rotation: np.ndarray, translation: np.ndarray) -> None:
        # Each prediction multiplies three rotations: an error of orthonormality grows 2.4-fold a frame.
        self.rotation[frame], self.translation[frame] = nearest_rotation(rotation), translation
        self.registered[frame] = True

    def extend(self, frames: range) -> None:
        """Register consecutive frames until they end or the map is out of sight.

        Of frames that follow fast on each other only some are registered, and the others where that is hard. All get their
        poses from the finished map.
        """
        self.keyframes = sorted(self.keyframes, reverse=frames.step < 0)
        done = 0  # how many of the frames are passed
        while done < len(frames):
            before = frames.start + (done - 1) * frames.step
            skipped = min(self.stride, len(frames) - done) - 1
            if skipped and self._register(frames[done + skipped], before, self._earlier(before, frames.step), _SURE_SHARE):
                done += skipped
            elif not self._register(frames[done], before, self._earlier(before, frames.step)):
                return
            frame, done = frames[done], done + 1
            if done == len(frames) or self._needs_keyframe(frame):
                self.keyframes.append(frame)
                self._triangulate(np.flatnonzero(self.visible[frame]))
                window = np.array(self.keyframes[-_WINDOW:])
                self._adjust(window, fixed=min(_FIXED, max(1, len(window) - 2)))

    def _earlier(self, frame: int, step: int) -> int | None:
        """Return the frame that was registered before this one, a few frames away at most; None where there is none."""
        near = (frame - k * step for k in range(1, self.stride + 1))
        return next((each for each in near if 0 <= each < len(self.registered) and self.registered[each]), None)

    def _register(self, frame: int, before: int, earlier: int | None = None, min_share: float = 0.0) -> bool:
        """Find the pose of a frame from its mapped points, starting from the predicted motion.

        Return whether that worked. Fewer than `min_share` of the points that fit are a failure.
        """
        which = np.flatnonzero(self.visible[frame] & np.isfinite(self.point[:, 0]))
        if len(which) < MIN_INLIERS:
            return False
        some = which[np.linspace(0, len(which) - 1, min(len(which), _POINTS)).astype(int)]
        best, share = None, -1.0
        for rotation, translation in self._initial_poses(frame, before, earlier):
            pose, fits = self._resect(frame, some, rotation, translation)
            if fits > share:
                best, share = pose, fits
            if share >= _SURE_SHARE:
                break
        assert best is not None, "there is always the pose of the frame before"
        if share < min_share:
            return False
        if share < _SURE_SHARE and (start := self._pose_by_ransac(frame, some)):
            pose, fits = self._resect(frame, some, *start)
            best, share = (pose, fits) if fits > share else (best, share)
        self._set_pose(frame, *best)
        return share * len(which) >= MIN_INLIERS

    def _initial_poses(self, frame: int, before: int, earlier: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return poses to start from: if known, one that continues the motion before, and that of the frame before."""
        rotation, translation = self.rotation[before], self.translation[before]
        if earlier is None:
            return [(rotation, translation)]
        part = (frame - before) / (before - earlier)
        step = rotation @ self.rotation[earlier].T
        step = exponential(part * logarithm(step))
        centre, moved = (
            -rotation.T @ translation,
            self.rotation[earlier].T @ self.translation[earlier] - rotation.T @ translation,
        )
        turned = step @ rotation
        return [(turned, -turned @ (centre + part * moved)), (rotation, translation)]

    def _resect(
        self, frame: int, which: np.ndarray, rotation: np.ndarray, translation: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        """Return the pose from a start, and the share of the points that fit it."""
        every = np.ones((1, len(which)), bool)
        points = Observations(self.point[which][None], self.xy[frame, which][None], every)
        result = resect(points, rotation[None], translation[None], self.focal)
        return (result.rotation[0], result.translation[0]), float((result.error_px < _FIT_PX).mean())

    def _pose_by_ransac(self, frame: int, which: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a pose that does not depend on the frames before, for motion that breaks off, as when a player hits a wall."""
        camera = np.diag([self.focal, self.focal, 1.0])
        cv2.setRNGSeed(1)
        solved, vector, translation, _ = cv2.solvePnPRansac(
            self.point[which],
            self.xy[frame, which],
            camera,
            None,
            None,
            None,
            False,
            _TRIALS,
            _FIT_PX,
            0.999,
            None,
            cv2.SOLVEPNP_SQPNP,
        )
        return (exponential(vector[:, 0]), translation[:, 0]) if solved else None

    def _needs_keyframe(self, frame: int) -> bool:
        last = self.keyframes[-1]
        both = self.visible[last] & self.visible[frame]
        moved = np.median(np.linalg.norm(self.xy[frame, both] - self.xy[last, both], axis=1)) if both.any() else np.inf
        few_tracks = both.sum() < _KEYFRAME_SHARE * self.visible[last].sum()
        few_points = self._mapped_count(frame) < _KEYFRAME_SHARE * self._mapped_count(last)
        late = abs(self.times_s[frame] - self.times_s[last]) > _KEYFRAME_S
        return bool(moved > _KEYFRAME_PX or few_tracks or few_points or late)

    def _mapped_count(self, frame: int) -> int:
        return int((self.visible[frame] & np.isfinite(self.point[:, 0])).sum())

    def _triangulate(self, tracks: np.ndarray) -> None:
        """Triangulate tracks again from the last keyframes."""
        frames = np.array(self.keyframes[-_TRIANGULATION_KEYFRAMES:])
        point = triangulate(
            self.xy[np.ix_(frames, tracks)],
            self.visible[np.ix_(frames, tracks)],
            self.rotation[frames],
            self.translation[frames],
            self.focal,
        )
        self.point[tracks] = np.where(np.isfinite(point), point, self.point[tracks])

    def _adjust(self, frames: np.ndarray, fixed: int, steps: int = 2) -> None:
        problem, tracks = self._problem(frames, fixed, len(frames))
        adjusted = adjust(problem, steps, focal_fixed=True)
        self.rotation[frames] = nearest_rotation(adjusted.rotation)
        self.translation[frames], self.point[tracks] = adjusted.translation, adjusted.point

    def _problem(self, frames: np.ndarray, fixed: int, views: int) -> tuple[Problem, np.ndarray]:
        """Return what these keyframes see of the points that at least two of them see, at most `views` of each, spread."""
        mapped = np.flatnonzero(np.isfinite(self.point[:, 0]))
        visible = self.visible[np.ix_(frames, mapped)]
        rank, count = np.cumsum(visible, 0) - 1, visible.sum(0)
        spread = np.floor(rank * np.minimum(views, count) / np.maximum(count, 1))
        before = np.floor((rank - 1) * np.minimum(views, count) / np.maximum(count, 1))
        column, camera_of = np.nonzero((visible & ((rank == 0) | (spread > before)) & (count >= 2)).T)
        used, point_of = np.unique(column, return_inverse=True)
        tracks = mapped[used]
        is_fixed = np.arange(len(frames)) < fixed
        observed = self.xy[frames[camera_of], mapped[column]]
        poses = self.rotation[frames], self.translation[frames]
        return Problem(*poses, self.point[tracks], self.focal, camera_of, point_of, observed, is_fixed), tracks

    def finish(self, focal_fixed: bool) -> Map:
        """Adjust everything together, twice. Observations that do not fit are left out of the second adjustment."""
        frames = np.array(sorted(set(self.keyframes)))
        problem, tracks = self._problem(frames, 1, _VIEWS)
        problem = adjust(problem, 15, focal_fixed)
        problem = adjust(_drop_outliers(problem), 15, focal_fixed)
        used = np.bincount(problem.point_of, minlength=len(tracks)) >= 3
        error = 0.0 if focal_fixed else focal_error(problem)
        points = tracks[used], problem.point[used]
        registered = np.flatnonzero(self.registered)
        posed = np.zeros(len(self.registered), bool)
        posed[registered[0] : registered[-1] + 1] = True  # frames between registered ones get their poses from the map
        return Map(frames, problem.rotation, problem.translation, *points, problem.focal, error, posed)


def _drop_outliers(problem: Problem) -> Problem:
    fits = np.linalg.norm(problem.residuals(), axis=1) < _OUTLIER_PX
    fits &= np.bincount(problem.point_of, fits, len(problem.point))[problem.point_of] >= 2
    kept = {name: getattr(problem, name)[fits] for name in ("camera_of", "point_of", "observed")}
    return replace(problem, **kept)


def triangulate(
    xy_LC2: np.ndarray, visible_LC: np.ndarray, rotation_L33: np.ndarray, translation_L3: np.ndarray, focal: float
) -> np.ndarray:
    """Return points [C, 3] from what L cameras see; NaN where rays are too parallel or do not meet."""
    ray = rays(np.nan_to_num(xy_LC2), focal) @ rotation_L33
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    centre = -np.einsum("lji,lj->li", rotation_L33, translation_L3)
    along = np.einsum("lci,li->lc", ray, centre)
    ray_CL3 = np.ascontiguousarray(ray.transpose(1, 0, 2))
    weight = visible_LC.astype(float)
    for _ in range(3):
        weighted = weight.T[..., None] * ray_CL3
        matrix = (weight.sum(0) + 1e-9)[:, None, None] * np.eye(3) - weighted.transpose(0, 2, 1) @ ray_CL3
        right = weight.T @ centre - np.einsum("cli,lc->ci", weighted, along)
        point = np.linalg.solve(matrix, right[..., None])[..., 0]
        offset = point[None] - centre[:, None]
        square = np.einsum("lci,lci->lc", offset, offset)
        weight = visible_LC / np.maximum(square, 1e-12)  # errors are errors of angle, not of distance
        weight /= np.maximum(weight.max(0), 1e-30)
    depth = np.einsum("lci,lci->lc", offset, ray)
    error_px = np.sqrt(np.maximum(square - depth**2, 0)) / np.maximum(depth, 1e-12) * focal
    first = ray[np.argmax(visible_LC, 0), np.arange(ray.shape[1])]
    cosine = np.where(visible_LC, (ray * first).sum(-1), 1).min(0)
    meets = np.where(visible_LC, (depth > 0) & (error_px < _FIT_PX), True).all(0)
    wide = cosine < np.cos(np.radians(_MIN_ANGLE_DEG))
    return np.where((meets & wide & (visible_LC.sum(0) >= 2))[:, None], point, np.nan)
