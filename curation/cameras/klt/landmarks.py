"""Points of a map by the numbers of their tracks, and the similarity that brings one map's world to another's.

Two parts of a clip are mapped apart where a door, a fast turn or a blast comes between them. Where the view returns to what was
mapped before, points of both maps are the same. They are recognised by tracks that go on from one part into the other, and by
how their corners look (ORB, Rublee et al. 2011).
"""

from typing import NamedTuple

import numpy as np

from curation.cameras.klt.agreement import umeyama
from curation.cameras.klt.mapping import Map
from curation.cameras.klt.tracks import Marks, Tracks
from curation.cameras.rotation import cross_matrix, exponential

_MAX_BITS, _MAX_RATIO = 64, 0.85  # of 256 that two looks of a corner may differ in, and compared with the next best
_TRIALS, _FIT_PX = 200, 4.0
_NOISE_PX, _STEPS = 1.5, 12  # a corner is found again within so many px
_MIN_MATCHES, _MIN_SHARE = 30, 0.5  # that fit one similarity, and their share of all matches: of similar walls few do
_INNER, _MIN_WIDTH = (0.1, 0.9), 0.3  # the share of the view's width that eight of ten matches span
_MAX_RESIDUAL_PX = 1.5
_MAX_UNCERTAINTY = 0.003  # of the path of both parts


class Landmarks(NamedTuple):
    """Points of a map. number int [P]: of their tracks. point f8 [P, 3]: in the world of the map.

    source: which map they are from; equal for parts of one map.
    """

    number: np.ndarray
    point: np.ndarray
    source: int

    @classmethod
    def of(cls, tracks: Tracks, reconstruction: Map, first: int, end: int) -> "Landmarks":
        """Return the points of a map that at least two of the frames [first, end) see. Its tracks are numbered in `tracks`."""
        start, length = tracks.start[reconstruction.track], tracks.length[reconstruction.track]
        seen = np.minimum(start + length, end) - np.maximum(start, first) >= 2
        return cls(tracks.number[reconstruction.track[seen]], reconstruction.point[seen], id(reconstruction.track))


class Similarity(NamedTuple):
    """x becomes scale * rotation @ x + translation."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def points(self, point_P3: np.ndarray) -> np.ndarray:
        """Return points in the other world."""
        moved: np.ndarray = self.scale * point_P3 @ self.rotation.T + self.translation
        return moved

    def poses(self, pose_N44: np.ndarray) -> np.ndarray:
        """Return camera-to-world poses in the other world."""
        pose = pose_N44.copy()
        pose[:, :3, :3] = self.rotation @ pose_N44[:, :3, :3]
        pose[:, :3, 3] = self.points(pose_N44[:, :3, 3])
        return pose

    @property
    def inverse(self) -> "Similarity":
        back = self.rotation.T / self.scale
        return Similarity(1 / self.scale, self.rotation.T, -back @ self.translation)

    def changed(self, step_7: np.ndarray) -> "Similarity":
        """Return the similarity after a small turn, a move, and a change of the logarithm of the scale."""
        turned = exponential(step_7[:3]) @ self.rotation
        return Similarity(self.scale * float(np.exp(step_7[6])), turned, self.translation + step_7[3:6])


class Part(NamedTuple):
    """Frames of a clip that were mapped together. frames int [N], in order; pose f8 [N, 4, 4] of these, camera-to-world."""

    frames: np.ndarray
    pose: np.ndarray
    landmarks: Landmarks

    def moved(self, to: Similarity) -> "Part":
        """Return it in another world."""
        return self._replace(pose=to.poses(self.pose), landmarks=self.landmarks._replace(point=to.points(self.landmarks.point)))

    def joined(self, other: "Part") -> "Part":
        """Return both parts of one world as one. Of a point in both, this one's is kept."""
        new = ~np.isin(other.landmarks.number, self.landmarks.number)
        number = np.concatenate([self.landmarks.number, other.landmarks.number[new]])
        point = np.concatenate([self.landmarks.point, other.landmarks.point[new]])
        order = np.argsort(np.concatenate([self.frames, other.frames]), kind="stable")
        frames, pose = np.concatenate([self.frames, other.frames])[order], np.concatenate([self.pose, other.pose])[order]
        return Part(frames, pose, Landmarks(number, point, self.landmarks.source))


class _Views(NamedTuple):
    """Points of one world, and where a camera of another world sees the same points: pose [P, 4, 4], observed [P, 2]."""

    point: np.ndarray
    pose: np.ndarray
    observed: np.ndarray

    def errors_px(self, to: Similarity, focal: float) -> np.ndarray:
        """Return the reprojection errors [P, 2] of the points, brought to the camera's world; large behind the camera."""
        local = np.einsum("pji,pj->pi", self.pose[:, :3, :3], to.points(self.point) - self.pose[:, :3, 3])
        depth = np.where(local[:, 2:] > 1e-9, local[:, 2:], np.nan)
        return np.nan_to_num(np.clip(focal * local[:, :2] / depth - self.observed, -1e4, 1e4), nan=1e4)


class _Matches(NamedTuple):
    """Points that two parts have in common, seen by a camera of the other part each."""

    first: _Views
    second: _Views
    x: np.ndarray

    def errors_px(self, to_first: Similarity, focal: float) -> np.ndarray:
        """Return the reprojection errors [P, 4] of both directions. to_first: from the second part's world to the first's."""
        forth, back = self.second.errors_px(to_first, focal), self.first.errors_px(to_first.inverse, focal)
        return np.concatenate([forth, back], 1)

    def of(self, which: np.ndarray) -> "_Matches":
        first, second = (_Views(*(column[which] for column in views)) for views in (self.first, self.second))
        return _Matches(first, second, self.x[which])


def align(
    first: Part, second: Part, tracks: Tracks, points: np.ndarray, focal: float, view: tuple[float, float]
) -> Similarity | None:
    """Return the similarity from the second part's world to the first's; None where too little proves one.

    tracks: all tracks of the world of the clip; points f4 [N, M, 2]: the same, px from the principal point. focal: px. view:
    width of the 3-D view, and px per px of a picture 640 wide.
    """
    matches = _matches(first, second, tracks, points)
    width, unit_px = view
    if len(matches.x) < _MIN_MATCHES:
        return None
    to_first, fits = _ransac(matches, focal, _FIT_PX * unit_px)
    if to_first is None or fits.sum() < max(_MIN_MATCHES, _MIN_SHARE * len(matches.x)):
        return None
    good = matches.of(fits)
    refined = _refine(good, to_first, focal, _NOISE_PX * unit_px)
    if refined is None:
        return None
    to_first, covariance = refined
    left_px = np.median(np.abs(good.errors_px(to_first, focal)))
    wide = np.ptp(np.quantile(good.x, _INNER, axis=0), axis=0).min() >= _MIN_WIDTH * width
    if not wide or left_px > _MAX_RESIDUAL_PX * unit_px:
        return None
    return to_first if _uncertainty(first, second, to_first, covariance) <= _MAX_UNCERTAINTY else None


def _matches(first: Part, second: Part, tracks: Tracks, points: np.ndarray) -> _Matches:
    """Return the points of both parts that are the same: by tracks that both see, and by how corners look."""
    one, two = first.landmarks, second.landmarks
    pairs = [np.empty((0, 2), int)]
    if one.source != two.source:
        same = np.intersect1d(one.number, two.number)
        pairs.append(np.stack([same, same], 1))
    pairs.append(alike(first, second, tracks.marks))
    number = np.concatenate(pairs)
    column = np.full(int(max(tracks.number.max(initial=-1), number.max(initial=-1))) + 1, -1)
    column[tracks.number] = np.arange(len(tracks.number))
    seen = []
    for part, side in ((first, 0), (second, 1)):
        visible = np.isfinite(points[part.frames][:, column[number[:, side]], 0])
        middle = np.cumsum(visible, 0) * 2 >= visible.sum(0)
        at = middle.argmax(0)
        order = np.argsort(part.landmarks.number)
        index = order[np.searchsorted(part.landmarks.number[order], number[:, side])]
        observed = points[part.frames[at], column[number[:, side]]].astype(float)
        seen.append((part.landmarks.point[index], part.pose[at], observed, visible.any(0)))
    known = seen[0][3] & seen[1][3]
    (point_one, pose_one, xy_one, _), (point_two, pose_two, xy_two, _) = ([c[known] for c in each] for each in seen)
    views = _Views(point_one, pose_two, xy_two), _Views(point_two, pose_one, xy_one)
    return _Matches(*views, np.stack([xy_one[:, 0], xy_two[:, 0]], 1))


def alike(first: Part, second: Part, marks: Marks) -> np.ndarray:
    """Return pairs of numbers [P, 2] of points whose corners look alike, each the other's best, and clearly its best."""
    sides = []
    for part, other in ((first, second), (second, first)):
        own = np.isin(marks.number, part.landmarks.number) & np.isin(marks.frame, part.frames)
        if part.landmarks.source == other.landmarks.source:
            own &= ~np.isin(marks.number, other.landmarks.number)  # the map's own claim is no evidence
        which = np.flatnonzero(own)
        # One look of each point: the one in the middle.
        order = which[np.lexsort((marks.frame[which], marks.number[which]))]
        number, begin, count = np.unique(marks.number[order], return_index=True, return_counts=True)
        sides.append((number, marks.descriptor[order[begin + count // 2]] if len(number) else marks.descriptor[:0]))
    (number_one, look_one), (number_two, look_two) = sides
    if min(len(number_one), len(number_two)) < 2:
        return np.empty((0, 2), int)
    distance = _hamming(look_one, look_two)
    best, best_back = distance.argmin(1), distance.argmin(0)
    every = np.arange(len(number_one))
    nearest, second_nearest = np.partition(distance, 1, axis=1)[:, :2].T
    sure = (best_back[best] == every) & (nearest <= _MAX_BITS) & (nearest < _MAX_RATIO * second_nearest)
    return np.stack([number_one[sure], number_two[best[sure]]], 1)


def _hamming(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return the number of bits [A, B] in which descriptors [A, 32] and [B, 32] differ."""
    a, b = (np.unpackbits(each, axis=1).astype(np.float32) for each in (one, two))
    return a.sum(1)[:, None] + b.sum(1) - 2 * a @ b.T


def _ransac(matches: _Matches, focal: float, fit_px: float) -> tuple[Similarity | None, np.ndarray]:
    """Return the similarity that most matches fit, and which do."""
    rng = np.random.default_rng(1)
    best, fits = None, np.zeros(len(matches.x), bool)
    for _ in range(_TRIALS):
        which = rng.choice(len(matches.x), 3, replace=False)
        x, y = matches.second.point[which], matches.first.point[which]
        if not np.ptp(x, axis=0).any() or not np.ptp(y, axis=0).any():
            continue
        candidate = Similarity(*umeyama(x, y))
        if not 1e-4 < candidate.scale < 1e4:
            continue
        now = (np.abs(matches.errors_px(candidate, focal)) < fit_px).all(1)
        if now.sum() > fits.sum():
            best, fits = candidate, now
    return best, fits


def _refine(matches: _Matches, start: Similarity, focal: float, noise_px: float) -> tuple[Similarity, np.ndarray] | None:
    """Return the similarity that explains the matches best (robust Gauss-Newton), and its covariance [7, 7]."""
    at = start
    extent = max(float(np.ptp(matches.first.point, axis=0).max()), 1e-12)
    unit = np.array([1.0] * 3 + [extent] * 3 + [1.0]) * 1e-6
    for _ in range(_STEPS):
        left = matches.errors_px(at, focal)
        jacobian = np.stack(
            [
                (matches.errors_px(at.changed(step), focal) - matches.errors_px(at.changed(-step), focal))
                for step in np.diag(unit)
            ],
            2,
        ) / (2 * unit)
        weight = 1 / (1 + (left / noise_px) ** 2)
        normal = np.einsum("pk,pki,pkj->ij", weight, jacobian, jacobian)
        try:
            inverse = np.linalg.inv(normal)
        except np.linalg.LinAlgError:
            return None
        step = -inverse @ np.einsum("pk,pki,pk->i", weight, jacobian, left)
        at = at.changed(step)
        if np.abs(step / unit).max() < 1:
            break
    spread = max(noise_px, float(np.median(np.abs(left)) * 1.5))
    return at, inverse * spread**2


def _uncertainty(first: Part, second: Part, to_first: Similarity, covariance: np.ndarray) -> float:
    """Return the standard error of the second part's positions in the first's world, as a share of the path of both."""
    centre = second.pose[[0, len(second.pose) // 2, -1], :3, 3]
    turned = (to_first.points(centre) - to_first.translation)[..., None]
    jacobian = np.concatenate([-cross_matrix(turned[..., 0]), np.tile(np.eye(3), (len(centre), 1, 1)), turned], 2)
    variance = np.einsum("nai,ij,naj->n", jacobian, covariance, jacobian).mean()
    length = [np.linalg.norm(np.diff(part.pose[:, :3, 3], axis=0), axis=1).sum() for part in (first, second.moved(to_first))]
    return float(np.sqrt(variance) / max(sum(length), 1e-12))
