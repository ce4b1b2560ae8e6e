"""How long a camera goes straight up or down, as it seems to before a door that fills the view and is taken for the world.

A door that rises is a camera that sinks, by every number of a map, and what is behind it has a scale of its own. A lift counts
too, and so does a view that bobs up and down while the player walks against a wall.
"""

from itertools import groupby

import numpy as np

from curation.cameras.klt.motion_model import frame_gaps
from curation.cameras.path_smoothness import down

_STEP_S = 0.15
_STEEP = 2.0  # times as much up or down as level
_SEEN = 0.01  # of the distance to the world: half a degree, 3 px of a picture 640 wide


def vertical_run_s(seen_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray, times_s: np.ndarray) -> float:
    """The longest time, in seconds, in which every 0.15 s take the camera further up or down than twice as far aside. seen bool
    [N, T]: which points of the map each frame sees; camera-to-world poses.
    """
    step = frame_gaps(times_s, [_STEP_S])[0]
    gone = pose_N44[step:, :3, 3] - pose_N44[:-step, :3, 3]
    axis = down(pose_N44)
    up = gone @ axis
    level = np.linalg.norm(gone - np.outer(up, axis), axis=1)
    shows = np.linalg.norm(gone, axis=1) > _SEEN * _distance(seen_NT, point_T3, pose_N44)[:-step]
    straight = shows & (np.abs(up) > _STEEP * level)
    longest = max((len(list(run)) for on, run in groupby(straight) if on), default=0)
    return longest * float(np.median(np.diff(times_s)))


def _distance(seen_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray) -> np.ndarray:
    """Along the view to the middle one of the points in sight, [N]; infinite where there is none."""
    ahead = pose_N44[:, :3, 2]
    depth = ahead @ point_T3.T - (ahead * pose_N44[:, :3, 3]).sum(1)[:, None]
    return np.array([np.median(row[seen]) if seen.any() else np.inf for row, seen in zip(depth, seen_NT, strict=True)])
