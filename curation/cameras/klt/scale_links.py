"""Whether one scale holds for a whole path: what ties the parts of it together.

Tracks have no unit of length: what a part of a path measures beside the rest hangs on points seen, from apart, in both.
Where a player stops before a plain wall and turns, few are; the scale behind runs off, and all else still fits.
"""

import numpy as np

_ANGLE_DEG = 1.0  # under which a point is seen from apart, on each side
_PART = 0.08  # of the path: what is before the first such part, or behind the last, is short of it in any case


def scale_links(seen_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray) -> int:
    """The fewest points, over all moments with a part of the path on both sides, that are seen under a parallax of a degree
    both before and after. seen bool [N, T]; camera-to-world poses. 0 where there is no path.
    """
    centre = pose_N44[:, :3, 3]
    gone = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centre, axis=0), axis=1))])
    inner = (gone > _PART * gone[-1]) & (gone < (1 - _PART) * gone[-1])
    if not inner.any() or not seen_NT.any():
        return 0
    ray = (point_T3[None] - centre[:, None]).astype(np.float32)
    ray /= np.maximum(np.linalg.norm(ray, axis=-1, keepdims=True), 1e-12)
    first, last = seen_NT.argmax(0), len(seen_NT) - 1 - seen_NT[::-1].argmax(0)
    moment, every = np.arange(len(seen_NT))[:, None], np.arange(len(point_T3))
    apart = [((ray - ray[end, every]) ** 2).sum(-1) > (2 * np.sin(np.radians(_ANGLE_DEG) / 2)) ** 2 for end in (first, last)]
    both = apart[0] & apart[1] & (moment > first) & (moment < last)
    return int(both.sum(1)[inner].min())
