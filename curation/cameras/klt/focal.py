"""The focal length: a first guess from epipolar geometry, and one for all clips of a source."""

from collections.abc import Sequence

import numpy as np

from curation.cameras.klt.epipolar import fundamental
from curation.cameras.klt.motion_model import frame_gaps

_GRID = np.geomspace(0.35, 2.0, 60)  # of the width: 110 to 28 degrees
_GAPS_S = (0.2, 0.4)
_PAIRS = 16  # a gap
_LEAST_POINTS, _AGREED = 30, 0.5


def guess(points_NM2: np.ndarray, times_s: np.ndarray, width: float) -> float | None:
    """Where to begin the search for a focal length, px; None where no pair of frames tells.

    An essential matrix has two equal singular values; the focal length is taken that makes those of K' F K most equal over
    many pairs (Mendonca & Cipolla 1999). Points in px from the principal point.
    """
    seen = np.isfinite(points_NM2[:, :, 0])
    found = []
    for gap in frame_gaps(times_s, _GAPS_S):
        for i in range(0, len(times_s) - gap, max(1, (len(times_s) - gap) // _PAIRS)):
            both = np.flatnonzero(seen[i] & seen[i + gap])
            if len(both) >= _LEAST_POINTS:
                a, b = (points_NM2[k, both].astype(np.float64) for k in (i, i + gap))
                pair = fundamental(a, b)
                if pair is not None and pair[1].mean() > _AGREED:
                    found.append(pair[0])
    if not found:
        return None
    scale = np.array([1.0, 1.0, 0.0]) * (_GRID * width)[:, None] + [0.0, 0.0, 1.0]
    essential = scale[:, None, :, None] * np.array(found)[None] * scale[:, None, None, :]
    one, two, _ = np.moveaxis(np.linalg.svd(essential, compute_uv=False), -1, 0)
    # The mean of the better half: pairs without parallax, or that only walk ahead, fit no focal length or all.
    unequal = np.sort((one - two) / (one + two), 1)[:, : max(1, len(found) // 2)]
    return float(_GRID[np.argmin(unequal.mean(1))] * width)


def pooled(found: Sequence[float], apart: float) -> float | None:
    """The median of what clips say, each on its own; None where none does, or most are further than `apart`, a share of it."""
    if not len(found):
        return None
    middle = float(np.median(found))
    near = np.abs(np.asarray(found) / middle - 1) <= apart
    return middle if near.mean() >= 0.5 else None
