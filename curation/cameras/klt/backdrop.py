"""Detect a painted sky: it turns with the view, but its rows stay where they are, unlike those of any far point.

Engines of the nineties draw the sky like this, around the player. Where it fills much of the picture it outvotes the world.
Near the middle of the view its error is so small that epipolar geometry does not reject it.
"""

import numpy as np

from curation.cameras.klt.motion_model import strides

_FOCAL = 0.5  # of the width (90 degrees): the expected row change depends little on it
_MIN_ROW_CHANGE_PX = 1.5  # of a far point; with less, a step cannot judge the track
_MAX_MOVED_SHARE = 0.3  # of that change, for a row that counts as unchanged
_MAX_WORLD_SHARE = 0.4  # of points below the horizon whose rows stay too; with more, the view moves sideways and does not turn
_MIN_POINTS = 20


def fixed_row_share(points_NM2: np.ndarray, step: int, width: int) -> np.ndarray:
    """Return for each track the share f8 [M] of steps in which its row stays although a far point's would not.

    Only steps in which a far point's row would change count; a track without any has 0. Points are in px from the principal
    point, NaN where not visible. The view must look level. width: px of the whole picture.
    """
    fixed, judged = np.zeros(points_NM2.shape[1]), np.zeros(points_NM2.shape[1])
    for both, a, b in strides(points_NM2, step):
        expected = a[:, 1] * (np.hypot(_FOCAL * width, b[:, 0]) / np.hypot(_FOCAL * width, a[:, 0]) - 1)
        counts = np.abs(expected) > _MIN_ROW_CHANGE_PX
        stays = counts & (np.abs(b[:, 1] - a[:, 1]) < _MAX_MOVED_SHARE * np.abs(expected))
        below = counts & (a[:, 1] > 0)
        if below.sum() < _MIN_POINTS or stays[below].mean() > _MAX_WORLD_SHARE:
            continue
        fixed[both] += stays
        judged[both] += counts
    return np.where(judged > 0, fixed / np.maximum(judged, 1), 0.0)
