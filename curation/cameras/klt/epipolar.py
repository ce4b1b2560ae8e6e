"""The epipolar geometry of two frames: which tracks go along with the one that most share, and which against a trajectory's."""

import cv2
import numpy as np

from curation.cameras.klt.motion_model import frame_gaps, strides
from curation.cameras.rotation import cross

_INLIER_PX = 1.5
_MOVED_PX = 1.0  # a step that moves less says nothing
_STILL_SHARE, _STILL_FROM_PX = 0.15, 6.0  # a point that moves so little of what the picture does stands on the screen
_TRIALS = 1000
_LEAST_POINTS = 20
_STEP_S, _LASTS_S = 0.15, 0.3  # of a motion that goes against a trajectory
_AGAINST = 1 / 320  # of the width, off an epipolar line
_INNER = (0.1, 0.9)  # of the points that go against it: what they span is not told by a few


def fundamental(a_P2: np.ndarray, b_P2: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """F [3, 3] with b' F a = 0, and the flags [P] of the points that agree (MAGSAC++); None where there is none."""
    try:
        matrix, inlier = cv2.findFundamentalMat(a_P2, b_P2, cv2.USAC_MAGSAC, _INLIER_PX, 0.999, _TRIALS)
    except cv2.error:  # what OpenCV 5 answers to points of which no sample fits a model
        return None
    if matrix is None or matrix.shape != (3, 3):
        return None
    return matrix, inlier.ravel() > 0


def agreement(points_NM2: np.ndarray, step: int) -> np.ndarray:
    """Share f8 [M] of the steps in which each track agrees with the dominant epipolar geometry; 1 where none tells.

    A weapon in hand or a third-person character is followed for seconds while the world comes and goes; distant frames would
    then be tied together by it alone.
    """
    agreed, asked = np.zeros(points_NM2.shape[1]), np.zeros(points_NM2.shape[1])
    for both, a, b in strides(points_NM2, step):
        if len(both) < _LEAST_POINTS:
            continue
        moved = np.linalg.norm(b - a, axis=1)
        typical = float(np.median(moved))
        if typical < _MOVED_PX or (found := fundamental(a, b)) is None:
            continue
        still = (moved < _STILL_SHARE * typical) & (typical > _STILL_FROM_PX)
        agreed[both] += found[1] & ~still
        asked[both] += 1
    return np.where(asked > 0, agreed / np.maximum(asked, 1), 1.0)


def outlier_coverage(points_NM2: np.ndarray, pose_N44: np.ndarray, focal: float, times_s: np.ndarray, width: int) -> float:
    """How much of the picture goes against a trajectory: the share of the tracks that leave their epipolar lines, times how
    much of the width they span, over 0.3 s; the most of a clip, 0 to 1.

    A door that fills the view and rises is taken for a camera that sinks; what stands on both its sides goes against that.
    What moves in front of the world goes against the camera too, but in one place.

    Points in px from the principal point, NaN where unseen; poses camera-to-world; width: px of the view.
    """
    step, lasts = (frame_gaps(times_s, [each])[0] for each in (_STEP_S, _LASTS_S))
    against = [_against(points_NM2[i::step][:2], pose_N44[i::step][:2], focal, width) for i in range(len(points_NM2) - step)]
    lasts = min(lasts, len(against))
    return float(np.convolve(against, np.full(lasts, 1 / lasts), "valid").max())


def _against(pair_2M2: np.ndarray, pose_244: np.ndarray, focal: float, width: int) -> float:
    """The same of one step."""
    both = np.isfinite(pair_2M2[:, :, 0]).all(0)
    if both.sum() < _LEAST_POINTS:
        return 0.0
    a, b = pair_2M2[:, both].astype(np.float64)
    astray = b[off_lines(a, b, np.linalg.inv(pose_244[1]) @ pose_244[0], focal) > _AGAINST * width, 0]
    return float(len(astray) / len(b) * np.ptp(np.quantile(astray, _INNER)) / width) if len(astray) else 0.0


def off_lines(a_P2: np.ndarray, b_P2: np.ndarray, move_44: np.ndarray, focal: float) -> np.ndarray:
    """How far points are off their epipolar lines, [P] px (Sampson's distance), where `move_44` leads from the first camera's
    coordinates to the second's. Points in px from the principal point.
    """
    essential = cross(move_44[:3, 3]) @ move_44[:3, :3]
    one, two = (np.column_stack([p, np.full(len(p), focal)]) for p in (a_P2, b_P2))
    line_two, line_one = one @ essential.T, two @ essential
    steep = np.hypot(np.hypot(*line_two[:, :2].T), np.hypot(*line_one[:, :2].T))
    return np.abs((two * line_two).sum(1)) / np.maximum(steep, 1e-12)
