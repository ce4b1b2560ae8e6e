"""Which kind of motion a clip shows (static, rotation, general), decided from its tracks before anything is reconstructed.

Structure from motion on a pure rotation invents a path and reports a good fit, so the model is chosen first. A rotation leaves
almost no residual in any frame pair, even in pairs that are far apart, whatever the depth of the scene.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras import rotation

_GAPS_S = (0.15, 0.45, 0.9)
_PAIRS_PER_GAP = 14
_POINTS_SHARE = 0.7
_FOCALS = np.geomspace(0.3, 2.0, 12)  # of the width: 118 to 28 degrees


class TrackMotion(NamedTuple):
    """How far tracks move, and how much of that no rotation explains.

    displaced_px: the 90th percentile of the displacement of points, the largest over the gaps and the clip. rotation_px: the
    residual of the best rotation at seven of ten points, in the worst tenth of the pairs. focal_px: the focal length used.

    It is seven of ten, not half: a walk towards far buildings under a sky leaves half of the points where a rotation has them.
    """

    displaced_px: float
    rotation_px: float
    focal_px: float


def measure_motion(points_NM2: np.ndarray, times_s: np.ndarray, width: float, focal_px: float | None) -> TrackMotion:
    """Measure the motion of points in px from the principal point (NaN: not visible). focal_px: None tries several."""
    gaps = frame_gaps(times_s, _GAPS_S)
    pairs = rotation.frame_pairs(points_NM2, gaps, max(1, len(times_s) // _PAIRS_PER_GAP))
    displaced = displacement(points_NM2, [*gaps, len(times_s) - 1])
    if not len(pairs.first):
        return TrackMotion(displaced, float("nan"), focal_px or float("nan"))
    focals = [focal_px] if focal_px else (_FOCALS * width).tolist()
    residuals = {focal: rotation.pair_rotations(pairs, focal)[1] for focal in focals}
    best = min(residuals, key=lambda focal: float(np.nanmedian(residuals[focal], 1).mean()))
    per_pair = np.nanquantile(residuals[best], _POINTS_SHARE, 1)
    gap = pairs.second - pairs.first
    worst = max(float(np.quantile(per_pair[gap == g], 0.9)) for g in sorted(set(gap.tolist())))
    return TrackMotion(displaced, worst, best)


def frame_gaps(times_s: np.ndarray, gaps_s: Sequence[float]) -> list[int]:
    """Convert gaps in seconds to frames: each at least one and fewer than the clip has."""
    step = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1.0
    return sorted({min(max(1, round(gap / step)), max(1, len(times_s) - 1)) for gap in gaps_s})


def strides(points_NM2: np.ndarray, step: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For every `step` frames, yield the tracks [P] visible at both ends and their points at either end [P, 2]."""
    visible = np.isfinite(points_NM2[:, :, 0])
    for i in range(0, len(points_NM2) - step, step):
        both = np.flatnonzero(visible[i] & visible[i + step])
        a, b = (points_NM2[k, both].astype(np.float64) for k in (i, i + step))
        yield both, a, b


def displacement(points_NM2: np.ndarray, gaps: Sequence[int]) -> float:
    """Return the 90th percentile of how far points move within a gap, in px: the largest over the gaps."""
    percentiles = []
    for gap in gaps:
        moved = np.linalg.norm(points_NM2[gap:] - points_NM2[:-gap], axis=-1) if gap else np.empty(0)
        moved = moved[np.isfinite(moved)]
        percentiles.append(float(np.percentile(moved, 90)) if len(moved) else 0.0)
    return max(percentiles, default=0.0)
