"""Epipolar geometry of two frames: which tracks agree with the dominant motion, and which contradict a trajectory."""

import cv2
import numpy as np

from curation.cameras.klt.motion_model import frame_gaps, strides
from curation.cameras.rotation import cross_matrix

_INLIER_PX = 1.5
_MIN_MOVED_PX = 1.0  # a step that moves less says nothing
# A point that moves less than this share of the picture's motion is fixed to the screen, if the picture moves this far.
_STILL_SHARE, _STILL_FROM_PX = 0.15, 6.0
_TRIALS = 1000
_MIN_POINTS = 20
_STEP_S, _WINDOW_S = 0.15, 0.3  # of a motion that contradicts a trajectory
_MAX_DISTANCE = 1 / 320  # from an epipolar line, as a share of the width
# Quantiles of the contradicting points between which their span is measured, so that a few points do not decide it.
_INNER = (0.1, 0.9)


def fundamental_matrix(a_P2: np.ndarray, b_P2: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return F [3, 3] with b' F a = 0, and flags [P] of the points that agree (MAGSAC++); None if there is no solution."""
    try:
        matrix, inlier = cv2.findFundamentalMat(a_P2, b_P2, cv2.USAC_MAGSAC, _INLIER_PX, 0.999, _TRIALS)
    except cv2.error:  # OpenCV 5 raises for points of which no sample fits a model
        return None
    if matrix is None or matrix.shape != (3, 3):
        return None
    return matrix, inlier.ravel() > 0


def agreement_share(points_NM2: np.ndarray, step: int) -> np.ndarray:
    """Return the share f8 [M] of steps in which each track agrees with the dominant epipolar geometry.

    It is 1 for a track that no step can judge. A weapon in hand or a third-person character is tracked for seconds while the
    world comes and goes. Without this vote, it alone would tie distant frames together.
    """
    agreed, judged = np.zeros(points_NM2.shape[1]), np.zeros(points_NM2.shape[1])
    for both, a, b in strides(points_NM2, step):
        if len(both) < _MIN_POINTS:
            continue
        moved = np.linalg.norm(b - a, axis=1)
        typical = float(np.median(moved))
        if typical < _MIN_MOVED_PX or (geometry := fundamental_matrix(a, b)) is None:
            continue
        still = (moved < _STILL_SHARE * typical) & (typical > _STILL_FROM_PX)
        agreed[both] += geometry[1] & ~still
        judged[both] += 1
    return np.where(judged > 0, agreed / np.maximum(judged, 1), 1.0)


def outlier_coverage(points_NM2: np.ndarray, pose_N44: np.ndarray, focal: float, times_s: np.ndarray, width: int) -> float:
    """Return how much of the picture contradicts a trajectory, 0 to 1.

    It is the share of the tracks that leave their epipolar lines, times the share of the width that they span, as a mean over
    0.3 s; the largest in the clip. A rising door that fills the view looks like a sinking camera, but what stands on both sides
    of the door contradicts that. An object that moves in front of the world contradicts the camera too, but in one place only.

    Points are in px from the principal point, NaN where not visible. Poses are camera-to-world. width: px of the view.
    """
    coverage, _ = _windowed_coverage(points_NM2, pose_N44, focal, times_s, width)
    return float(coverage.max())


def worst_coverage(
    points_NM2: np.ndarray, pose_N44: np.ndarray, focal: float, times_s: np.ndarray, width: int
) -> tuple[int, int]:
    """Return the frames [a, b) over which the outlier coverage is largest."""
    coverage, frames = _windowed_coverage(points_NM2, pose_N44, focal, times_s, width)
    first = int(coverage.argmax())
    return first, first + frames


def _windowed_coverage(
    points_NM2: np.ndarray, pose_N44: np.ndarray, focal: float, times_s: np.ndarray, width: int
) -> tuple[np.ndarray, int]:
    """Return the mean coverage over each window, and the frames that one spans."""
    step, window = (frame_gaps(times_s, [each])[0] for each in (_STEP_S, _WINDOW_S))
    steps = range(len(points_NM2) - step)
    coverage = [_step_coverage(points_NM2[i::step][:2], pose_N44[i::step][:2], focal, width) for i in steps]
    window = min(window, len(coverage))
    return np.convolve(coverage, np.full(window, 1 / window), "valid"), window + step


def _step_coverage(pair_2M2: np.ndarray, pose_244: np.ndarray, focal: float, width: int) -> float:
    """Return the outlier coverage of one step."""
    both = np.isfinite(pair_2M2[:, :, 0]).all(0)
    if both.sum() < _MIN_POINTS:
        return 0.0
    a, b = pair_2M2[:, both].astype(np.float64)
    outliers = b[epipolar_distance(a, b, np.linalg.inv(pose_244[1]) @ pose_244[0], focal) > _MAX_DISTANCE * width, 0]
    return float(len(outliers) / len(b) * np.ptp(np.quantile(outliers, _INNER)) / width) if len(outliers) else 0.0


def epipolar_distance(a_P2: np.ndarray, b_P2: np.ndarray, move_44: np.ndarray, focal: float) -> np.ndarray:
    """Return how far points are from their epipolar lines, [P] px (Sampson's distance).

    `move_44` takes coordinates of the first camera to those of the second. Points are in px from the principal point.
    """
    essential = cross_matrix(move_44[:3, 3]) @ move_44[:3, :3]
    one, two = (np.column_stack([p, np.full(len(p), focal)]) for p in (a_P2, b_P2))
    line_two, line_one = one @ essential.T, two @ essential
    steep = np.hypot(np.hypot(*line_two[:, :2].T), np.hypot(*line_one[:, :2].T))
    return np.abs((two * line_two).sum(1)) / np.maximum(steep, 1e-12)
