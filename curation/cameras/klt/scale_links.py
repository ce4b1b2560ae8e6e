"""Whether one scale holds for a whole path: how many points tie its parts together.

Tracks have no unit of length. The relative scale of two parts of a path is fixed only by points that both see with enough
parallax. Where a player stops in front of a plain wall and turns, few points do. The scale of the later part then drifts, and
every other check still passes.
"""

import numpy as np

_ANGLE_DEG = 1.0  # the parallax under which a point must be seen on each side
_PART = 0.08  # of the path: the first and the last part are left out, as they always have few links


def scale_links(visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray) -> int:
    """Return the number of points that tie the scale at the weakest moment of a path; 0 where there is no path.

    Arguments are those of `links_per_frame`.
    """
    if not np.ptp(pose_N44[:, :3, 3], axis=0).any() or not visible_NT.any():
        return 0
    return int(links_per_frame(visible_NT, point_T3, pose_N44).min())


def links_per_frame(visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray) -> np.ndarray:
    """Return the number of points that tie the scale at each moment of a path, [N].

    A point ties a moment if it is seen under a parallax of a degree both before and after it. In the first and the last part of
    the path it is the number of all points. visible bool [N, T]: which points each frame sees. Poses are camera-to-world.
    """
    centre = pose_N44[:, :3, 3]
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centre, axis=0), axis=1))])
    inner = (length > _PART * length[-1]) & (length < (1 - _PART) * length[-1])
    ray = (point_T3[None] - centre[:, None]).astype(np.float32)
    ray /= np.maximum(np.linalg.norm(ray, axis=-1, keepdims=True), 1e-12)
    first, last = visible_NT.argmax(0), len(visible_NT) - 1 - visible_NT[::-1].argmax(0)
    moment, every = np.arange(len(visible_NT))[:, None], np.arange(len(point_T3))
    chord = 2 * np.sin(np.radians(_ANGLE_DEG) / 2)
    has_parallax = [((ray - ray[end, every]) ** 2).sum(-1) > chord**2 for end in (first, last)]
    both = has_parallax[0] & has_parallax[1] & (moment > first) & (moment < last)
    return np.where(inner, both.sum(1), len(point_T3))
