"""The fundamental matrix of two frames, and which tracks go along with the one that most tracks share."""

import cv2
import numpy as np

from curation.cameras.motion import strides

_INLIER_PX = 1.5
_MOVED_PX = 1.0  # a step that moves less says nothing
_STILL_SHARE, _STILL_FROM_PX = 0.15, 6.0  # a point that moves so little of what the picture does stands on the screen
_TRIALS = 1000
_LEAST_POINTS = 20


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
