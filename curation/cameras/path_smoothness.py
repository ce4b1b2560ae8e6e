"""How smooth a path is: what a player does goes on, while a map breaks where one thing was taken for another."""

import numpy as np


def step_ratio(pose_N44: np.ndarray) -> float:
    """The largest step from frame to frame over the 90th percentile of steps; 1 where nothing moves."""
    step = np.linalg.norm(np.diff(pose_N44[:, :3, 3], axis=0), axis=1)
    usual = float(np.quantile(step, 0.9)) if len(step) else 0.0
    return float(step.max()) / usual if usual > 0 else 1.0


def velocity_spike(pose_N44: np.ndarray, times_s: np.ndarray) -> float:
    """The largest break of the level velocity: how far one frame's is from those both before and after it, over the 90th
    percentile of the speed; 0 where nothing moves. Camera-to-world poses, OpenCV axes.

    Who hits a wall stops and stays; a wall taken for another one moves the eye aside and on. Level, that is across the mean of
    the cameras' down, since stairs and lifts may lift the eye at once. A frame that a recorder shows twice gives 1.
    """
    axis = down(pose_N44)
    place = pose_N44[:, :3, 3] - np.outer(pose_N44[:, :3, 3] @ axis, axis)
    velocity = np.diff(place, axis=0) / np.diff(times_s)[:, None]
    usual = float(np.quantile(np.linalg.norm(velocity, axis=1), 0.9)) if len(velocity) else 0.0
    change = np.linalg.norm(np.diff(velocity, axis=0), axis=1)
    return float(np.minimum(change[:-1], change[1:]).max(initial=0.0)) / usual if usual > 0 else 0.0


def down(pose_N44: np.ndarray) -> np.ndarray:
    """Where down is, [3]: the mean of the cameras' own."""
    mean = pose_N44[:, :3, 1].mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)
