"""How long a camera moves straight up or down, as it seems to in front of a rising door that is mistaken for the world.

A rising door that fills the view looks like a sinking camera to every other check, and the scene behind it gets a different
scale. A lift counts too, and so does a view that bobs up and down while the player walks against a wall.
"""

from itertools import groupby

import numpy as np

from curation.cameras.klt.motion_model import frame_gaps
from curation.cameras.path_smoothness import down_axis

_STEP_S = 0.15
_MIN_STEEPNESS = 2.0  # vertical over level motion
_MIN_STEP = 0.01  # of the distance to the world: half a degree, 3 px of a picture 640 wide


def vertical_run_s(visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray, times_s: np.ndarray) -> float:
    """Return the longest time in seconds in which every step of 0.15 s moves the camera straight up or down.

    Straight means more than twice as far up or down as level. visible bool [N, T]: which points of the map each frame sees.
    Poses are camera-to-world.
    """
    step = frame_gaps(times_s, [_STEP_S])[0]
    moved = pose_N44[step:, :3, 3] - pose_N44[:-step, :3, 3]
    axis = down_axis(pose_N44)
    vertical = moved @ axis
    level = np.linalg.norm(moved - np.outer(vertical, axis), axis=1)
    noticeable = np.linalg.norm(moved, axis=1) > _MIN_STEP * _scene_distance(visible_NT, point_T3, pose_N44)[:-step]
    straight = noticeable & (np.abs(vertical) > _MIN_STEEPNESS * level)
    longest = max((len(list(run)) for is_straight, run in groupby(straight) if is_straight), default=0)
    return longest * float(np.median(np.diff(times_s)))


def _scene_distance(visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray) -> np.ndarray:
    """Return the median depth of the visible points, [N]; infinite where there is none."""
    forward = pose_N44[:, :3, 2]
    depth = forward @ point_T3.T - (forward * pose_N44[:, :3, 3]).sum(1)[:, None]
    rows = zip(depth, visible_NT, strict=True)
    return np.array([np.median(row[visible]) if visible.any() else np.inf for row, visible in rows])
