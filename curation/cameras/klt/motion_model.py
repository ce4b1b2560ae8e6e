"""Which kind of motion a clip shows, told from its tracks before anything is reconstructed: static, rotation, general.

Structure from motion on a pure rotation invents a path and reports a good fit, so the choice comes first: a rotation leaves
next to nothing of every frame pair, also of pairs far apart, whatever the depth of the scene.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras import rotation

_GAPS_S = (0.15, 0.45, 0.9)
_PAIRS = 14  # a gap
_POINTS_SHARE = 0.7
_FOCALS = np.geomspace(0.3, 2.0, 12)  # of the width: 118 to 28 degrees


class Motion(NamedTuple):
    """displaced_px: the 90th percentile of what points move, over the gaps and the clip. rotation_px: what the best rotation
    leaves at seven of ten points, in the worst tenth of the pairs. focal_px: with which that was found.

    Seven of ten, not half: a walk towards far buildings under a sky leaves half of the points where a rotation has them.
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
    left = {focal: rotation.turns(found, focal)[1] for focal in ([focal_px] if focal_px else (_FOCALS * width).tolist())}
    best = min(left, key=lambda focal: float(np.nanmedian(left[focal], 1).mean()))
    most = np.nanquantile(left[best], _POINTS_SHARE, 1)
    gap = found.second - found.first
    worst = max(float(np.quantile(most[gap == g], 0.9)) for g in sorted(set(gap.tolist())))
    return Motion(displaced, worst, best)


def frame_gaps(times_s: np.ndarray, gaps_s: Sequence[float]) -> list[int]:
    """Seconds in frames, each at least one and fewer than there are."""
    step = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1.0
    return sorted({min(max(1, round(gap / step)), max(1, len(times_s) - 1)) for gap in gaps_s})


def strides(points_NM2: np.ndarray, step: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of every step of so many frames the tracks [P] that both ends see, and where they are at the one and the other [P, 2]."""
    seen = np.isfinite(points_NM2[:, :, 0])
    for i in range(0, len(points_NM2) - step, step):
        both = np.flatnonzero(seen[i] & seen[i + step])
        a, b = (points_NM2[k, both].astype(np.float64) for k in (i, i + step))
        yield both, a, b


def displacement(points_NM2: np.ndarray, gaps: Sequence[int]) -> float:
    """The 90th percentile of how far points go within a gap, px: the largest over the gaps."""
    found = []
    for gap in gaps:
        gone = np.linalg.norm(points_NM2[gap:] - points_NM2[:-gap], axis=-1) if gap else np.empty(0)
        gone = gone[np.isfinite(gone)]
        found.append(float(np.percentile(gone, 90)) if len(gone) else 0.0)
    return max(found, default=0.0)
