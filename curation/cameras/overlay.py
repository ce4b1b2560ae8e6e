"""What moves with the screen or on its own, not with the world: tracks that most frame pairs' epipolar geometry disowns.

A weapon in hand or a third-person character is followed for seconds while the world comes and goes; distant keyframes would then
be tied together by it alone.
"""

import cv2
import numpy as np

_INLIER_PX = 1.5
_MOVED_PX = 1.0  # a step that moves less says nothing
_STILL_SHARE, _STILL_FROM_PX = 0.15, 6.0  # a point that moves so little of what the picture does stands on the screen
_MOST_TRIALS = 1000
_LEAST_POINTS = 20


def agreement(points_NM2: np.ndarray, step: int) -> np.ndarray:
    """Share f8 [M] of the steps in which each track agrees with the dominant epipolar geometry; 1 where none tells."""
    seen = np.isfinite(points_NM2[:, :, 0])
    agreed, asked = np.zeros(points_NM2.shape[1]), np.zeros(points_NM2.shape[1])
    for i in range(0, len(points_NM2) - step, step):
        both = np.flatnonzero(seen[i] & seen[i + step])
        if len(both) < _LEAST_POINTS:
            continue
        a, b = (points_NM2[k, both].astype(np.float64) for k in (i, i + step))
        moved = np.linalg.norm(b - a, axis=1)
        if np.median(moved) < _MOVED_PX:
            continue
        _, inlier = cv2.findFundamentalMat(a, b, cv2.USAC_MAGSAC, _INLIER_PX, 0.999, _MOST_TRIALS)
        if inlier is None:
            continue
        still = (moved < _STILL_SHARE * np.median(moved)) & (np.median(moved) > _STILL_FROM_PX)
        agreed[both] += (inlier.ravel() > 0) & ~still
        asked[both] += 1
    return np.where(asked > 0, agreed / np.maximum(asked, 1), 1.0)
