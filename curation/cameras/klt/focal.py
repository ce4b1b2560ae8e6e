"""The focal length: a first estimate from epipolar geometry, and one value for all clips of a source."""

from collections.abc import Sequence

import numpy as np

from curation.cameras.klt.epipolar import fundamental_matrix
from curation.cameras.klt.motion_model import frame_gaps

_GRID = np.geomspace(0.35, 2.0, 60)  # of the width: 110 to 28 degrees
_GAPS_S = (0.2, 0.4)
_PAIRS_PER_GAP = 16
_MIN_POINTS, _MIN_AGREEING = 30, 0.5


def estimate_focal(points_NM2: np.ndarray, times_s: np.ndarray, width: float) -> float | None:
    """Return a first estimate of the focal length in px; None where no pair of frames gives one.

    An essential matrix has two equal singular values. The estimate is the focal length that makes those of K' F K most equal
    over many pairs (Mendonca & Cipolla 1999). Points are in px from the principal point.
    """
    visible = np.isfinite(points_NM2[:, :, 0])
    matrices = []
    for gap in frame_gaps(times_s, _GAPS_S):
        for i in range(0, len(times_s) - gap, max(1, (len(times_s) - gap) // _PAIRS_PER_GAP)):
            both = np.flatnonzero(visible[i] & visible[i + gap])
            if len(both) >= _MIN_POINTS:
                a, b = (points_NM2[k, both].astype(np.float64) for k in (i, i + gap))
                pair = fundamental_matrix(a, b)
                if pair is not None and pair[1].mean() > _MIN_AGREEING:
                    matrices.append(pair[0])
    if not matrices:
        return None
    scale = np.array([1.0, 1.0, 0.0]) * (_GRID * width)[:, None] + [0.0, 0.0, 1.0]
    essential = scale[:, None, :, None] * np.array(matrices)[None] * scale[:, None, None, :]
    one, two, _ = np.moveaxis(np.linalg.svd(essential, compute_uv=False), -1, 0)
    # The mean of the better half: pairs without parallax, or of a straight walk forward, fit no focal length or all of them.
    unequal = np.sort((one - two) / (one + two), 1)[:, : max(1, len(matrices) // 2)]
    return float(_GRID[np.argmin(unequal.mean(1))] * width)


def pool_focals(focals: Sequence[float], max_disagreement: float) -> float | None:
    """Return the median of the clips' focal lengths.

    None where there are none, or where most are further from the median than `max_disagreement`, a share of it.
    """
    if not len(focals):
        return None
    median = float(np.median(focals))
    near = np.abs(np.asarray(focals) / median - 1) <= max_disagreement
    return median if near.mean() >= 0.5 else None
