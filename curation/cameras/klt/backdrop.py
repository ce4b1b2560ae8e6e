"""A painted sky: it turns with the view, but its rows stay where they are, as no far point's would.

Engines of the nineties draw it so, around the player. Where it fills much of the picture it outvotes the world, and near the
middle of the view it is off by so little that epipolar geometry lets it pass.
"""

import numpy as np

from curation.cameras.klt.motion_model import strides

_FOCAL = 0.5  # of the width (90 degrees): what a row is due hangs little on it
_TOLD_PX = 1.5  # that a far point's row would change by
_STAYS = 0.3  # of that
_WORLD = 0.4  # share of the points below the horizon that stay too: then the view goes aside, and does not turn
_LEAST_POINTS = 20


def kept_rows(points_NM2: np.ndarray, step: int, width: int) -> np.ndarray:
    """Share f8 [M] of the steps that tell in which each track keeps its row although a far point would not; 0 where none tells.

    Points in px from the principal point, NaN where unseen; a view that looks level. width: px of the whole picture.
    """
    kept, asked = np.zeros(points_NM2.shape[1]), np.zeros(points_NM2.shape[1])
    for both, a, b in strides(points_NM2, step):
        due = a[:, 1] * (np.hypot(_FOCAL * width, b[:, 0]) / np.hypot(_FOCAL * width, a[:, 0]) - 1)
        told = np.abs(due) > _TOLD_PX
        stays = told & (np.abs(b[:, 1] - a[:, 1]) < _STAYS * np.abs(due))
        below = told & (a[:, 1] > 0)
        if below.sum() < _LEAST_POINTS or stays[below].mean() > _WORLD:
            continue
        kept[both] += stays
        asked[both] += told
    return np.where(asked > 0, kept / np.maximum(asked, 1), 0.0)
