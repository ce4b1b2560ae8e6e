"""How smooth a path is. A player's motion continues, while a map breaks where one thing was mistaken for another."""

import numpy as np


def step_ratio(pose_N44: np.ndarray) -> float:
    """Return the largest step from frame to frame over the 90th percentile of steps; 1 where nothing moves."""
    step = step_sizes(pose_N44)
    usual = float(np.quantile(step, 0.9)) if len(step) else 0.0
    return float(step.max()) / usual if usual > 0 else 1.0


def step_sizes(pose_N44: np.ndarray) -> np.ndarray:
    """Return the length of each step from frame to frame, [N - 1]."""
    return np.linalg.norm(np.diff(pose_N44[:, :3, 3], axis=0), axis=1)


def velocity_spike(pose_N44: np.ndarray, times_s: np.ndarray) -> float:
    """Return the largest one-frame change of the level velocity, over the 90th percentile of the speed.

    The change of a frame is the smaller of its differences to the frame before and to the frame after. It is 0 where nothing
    moves; a frame that a recorder shows twice gives 1. Poses are camera-to-world, with OpenCV axes.

    A player who hits a wall stops. A mismatched wall makes the estimated camera jump sideways and keep going. Only the level
    part counts, across the mean of the cameras' down axes, since stairs and lifts may lift the eye at once.
    """
    velocity = _level_velocity(pose_N44, times_s)
    usual = float(np.quantile(np.linalg.norm(velocity, axis=1), 0.9)) if len(velocity) else 0.0
    return float(velocity_changes(pose_N44, times_s).max(initial=0.0)) / usual if usual > 0 else 0.0


def velocity_changes(pose_N44: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Return by how much the level velocity of each inner step differs from that of the nearer of its neighbours, [N - 3]."""
    change = np.linalg.norm(np.diff(_level_velocity(pose_N44, times_s), axis=0), axis=1)
    return np.minimum(change[:-1], change[1:])


def _level_velocity(pose_N44: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    axis = down_axis(pose_N44)
    level = pose_N44[:, :3, 3] - np.outer(pose_N44[:, :3, 3] @ axis, axis)
    velocity: np.ndarray = np.diff(level, axis=0) / np.diff(times_s)[:, None]
    return velocity


def down_axis(pose_N44: np.ndarray) -> np.ndarray:
    """Return the down direction of the world, [3]: the mean of the cameras' own."""
    mean = pose_N44[:, :3, 1].mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)
