"""Which kind of motion a clip shows, told from its tracks before anything is reconstructed: static, rotation, general.

A global mapper given a pure rotation invents a path and reports a good fit, so the choice comes first: a rotation leaves next to
nothing of every frame pair, also of pairs far apart, whatever the depth of the scene.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras import rotation

_GAPS_S = (0.15, 0.45, 0.9)
_PAIRS = 14  # a gap
_FOCALS = np.geomspace(0.3, 2.0, 12)  # of the width: 118 to 28 degrees


class Motion(NamedTuple):
    """displaced_px: the 90th percentile of what points move, over the gaps and the clip. rotation_px: what the best rotation
    leaves at the median point, in the worst tenth of the pairs. focal_px: with which that was found.
    """

    displaced_px: float
    rotation_px: float
    focal_px: float


def motion(points_NM2: np.ndarray, times_s: np.ndarray, width: float, focal_px: float | None) -> Motion:
    """What the tracks say; points in px from the principal point, NaN where unseen."""
    gaps = frame_gaps(times_s, _GAPS_S)
    found = rotation.pairs(points_NM2, gaps, max(1, len(times_s) // _PAIRS))
    displaced = displacement(points_NM2, [*gaps, len(times_s) - 1])
    if not len(found.first):
        return Motion(displaced, float("nan"), focal_px or float("nan"))
    focals = [focal_px] if focal_px else (_FOCALS * width).tolist()
    left = {focal: np.nanmedian(rotation.turns(found, focal)[1], 1) for focal in focals}
    best = min(left, key=lambda focal: float(left[focal].mean()))
    worst = max(float(np.quantile(left[best][found.second - found.first == gap], 0.9)) for gap in _present(found))
    return Motion(displaced, worst, best)


def _present(found: rotation.Pairs) -> list[int]:
    return sorted(set((found.second - found.first).tolist()))


def frame_gaps(times_s: np.ndarray, gaps_s: Sequence[float]) -> list[int]:
    """Seconds in frames, each at least one and fewer than there are."""
    step = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1.0
    return sorted({min(max(1, round(gap / step)), max(1, len(times_s) - 1)) for gap in gaps_s})


def displacement(points_NM2: np.ndarray, gaps: Sequence[int]) -> float:
    """The 90th percentile of how far points go within a gap, px: the largest over the gaps."""
    found = []
    for gap in gaps:
        gone = np.linalg.norm(points_NM2[gap:] - points_NM2[:-gap], axis=-1) if gap else np.empty(0)
        gone = gone[np.isfinite(gone)]
        found.append(float(np.percentile(gone, 90)) if len(gone) else 0.0)
    return max(found, default=0.0)
