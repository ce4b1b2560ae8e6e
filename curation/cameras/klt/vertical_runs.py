"""How long a camera moves straight up, or straight down, as it seems to in front of a rising door mistaken for the world.

A rising door that fills the view looks like a sinking camera to every other check, and the scene behind it gets a different
scale. A lift counts too. Each direction counts alone: a player whose view bobs goes up and down. A door moves at one speed. Who
jumps or falls does not: a rise that slows down, and a fall that gets faster, do not count.
"""

from itertools import groupby

import numpy as np

from curation.cameras.klt.motion_model import frame_gaps
from curation.cameras.path_smoothness import down_axis

_STEP_S = 0.15
_MIN_STEEPNESS = 2.0  # vertical over level motion
_MIN_SPEEDUP = 0.4  # downwards, of a jump or fall, as a share of its mean speed: jumps 0.5 to 2.5, doors 0
_MIN_FRAMES = 4  # whose speeds can be compared
_MIN_STEP = 0.01  # of the distance to the world: half a degree, 3 px of a picture 640 wide


def vertical_run_s(visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray, times_s: np.ndarray) -> float:
    """Return the longest time in seconds in which every step of 0.15 s moves the camera straight up, or every one down.

    Straight means more than twice as far up or down as level. visible bool [N, T]: which points of the map each frame sees.
    Poses are camera-to-world.
    """
    first, end = _longest(_directions(visible_NT, point_T3, pose_N44, times_s), pose_N44, times_s)
    return (end - first) * float(np.median(np.diff(times_s)))


def longest_vertical_run(
    visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray, times_s: np.ndarray
) -> tuple[int, int]:
    """Return the frames [a, b) of that time, with the whole of its last step."""
    first, end = _longest(_directions(visible_NT, point_T3, pose_N44, times_s), pose_N44, times_s)
    return first, end + frame_gaps(times_s, [_STEP_S])[0]


def _directions(visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Return whether the step of 0.15 s from each frame goes straight down (1), straight up (-1), or neither (0)."""
    step = frame_gaps(times_s, [_STEP_S])[0]
    moved = pose_N44[step:, :3, 3] - pose_N44[:-step, :3, 3]
    axis = down_axis(pose_N44)
    vertical = moved @ axis
    level = np.linalg.norm(moved - np.outer(vertical, axis), axis=1)
    noticeable = np.linalg.norm(moved, axis=1) > _MIN_STEP * _scene_distance(visible_NT, point_T3, pose_N44)[:-step]
    return np.where(noticeable & (np.abs(vertical) > _MIN_STEEPNESS * level), np.sign(vertical), 0).astype(int)


def _longest(directions: np.ndarray, pose_N44: np.ndarray, times_s: np.ndarray) -> tuple[int, int]:
    """Return the longest run [a, b) of one direction that is no jump or fall; an empty one where there is none."""
    step, down = frame_gaps(times_s, [_STEP_S])[0], pose_N44[:, :3, 3] @ down_axis(pose_N44)
    best, at = (0, 0), 0
    for direction, run in groupby(directions.tolist()):
        end = at + len(list(run))
        # All steps of the run pass through these frames: what stood still before and after it does not slow them down.
        inner = slice(at + step - 1, end + 1)
        if direction and end - at > best[1] - best[0] and not _is_ballistic(down[inner], times_s[inner]):
            best = at, end
        at = end
    return best


def _is_ballistic(down: np.ndarray, times_s: np.ndarray) -> bool:
    """Whether a camera that moves straight up or down is accelerated downwards. down [N]: its position."""
    if len(down) <= _MIN_FRAMES:
        return False
    speed, middle = np.diff(down) / np.diff(times_s), (times_s[1:] + times_s[:-1]) / 2
    speedup = np.polyfit(middle - middle.mean(), speed, 1)[0] * (middle[-1] - middle[0])
    return bool(speedup > _MIN_SPEEDUP * np.abs(speed).mean())


def _scene_distance(visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray) -> np.ndarray:
    """Return the median depth of the visible points, [N]; infinite where there is none."""
    forward = pose_N44[:, :3, 2]
    depth = forward @ point_T3.T - (forward * pose_N44[:, :3, 3]).sum(1)[:, None]
    rows = zip(depth, visible_NT, strict=True)
    return np.array([np.median(row[visible]) if visible.any() else np.inf for row, visible in rows])
