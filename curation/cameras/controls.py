"""How the camera moved from frame to frame, in its own axes: the speeds behind motion words, and a player's controls."""

from typing import NamedTuple

import numpy as np

from curation.cameras.rotation import logarithm

# An SfM step is wrong by a tenth of a walking step or so. Over this time the errors cancel, and a key press is still visible.
_SMOOTH_S = 0.2


class Rates(NamedTuple):
    """Rates of motion, float [N] each. Frame i has the rate of the step from i to i + 1, the last frame that of the last step.

    forward, right, up: translation a second along the camera's axes, in the unit of the poses. pan_deg_s (to the right),
    tilt_deg_s (upwards), roll_deg_s (clockwise, as the viewer's head).
    """

    forward: np.ndarray
    right: np.ndarray
    up: np.ndarray
    pan_deg_s: np.ndarray
    tilt_deg_s: np.ndarray
    roll_deg_s: np.ndarray

    @property
    def speed(self) -> np.ndarray:
        return np.sqrt(self.forward**2 + self.right**2 + self.up**2)


def rates(pose: np.ndarray, times_s: np.ndarray, smooth_s: float = _SMOOTH_S) -> Rates:
    """Return the rates of camera-to-world poses [N, 4, 4] at times [N], each the mean over a window around its frame."""
    if len(pose) < 2:
        return Rates(*np.zeros((6, len(pose))))
    step = np.linalg.inv(pose[:-1]) @ pose[1:]
    right, down, forward = step[:, :3, 3].T
    tilt, pan, roll = np.degrees(logarithm(step[:, :3, :3])).T
    steps = np.stack([forward, right, -down, pan, tilt, roll])
    return Rates(*_windowed_rates(steps, np.asarray(times_s, float), smooth_s))


def _windowed_rates(steps: np.ndarray, times_s: np.ndarray, smooth_s: float) -> np.ndarray:
    """Return the sums of steps [K, N - 1] over the window around each step, divided by the time that it spans; [K, N]."""
    ends = np.concatenate([np.zeros((len(steps), 1)), np.cumsum(steps, axis=1)], axis=1)
    middle = (times_s[:-1] + times_s[1:]) / 2
    first = np.searchsorted(times_s, middle - smooth_s / 2, side="left").clip(0, len(times_s) - 2)
    last = (np.searchsorted(times_s, middle + smooth_s / 2, side="right") - 1).clip(1, len(times_s) - 1)
    each = np.arange(len(middle))
    first, last = np.minimum(first, each), np.maximum(last, each + 1)
    rate = (ends[:, last] - ends[:, first]) / (times_s[last] - times_s[first])
    return np.concatenate([rate, rate[:, -1:]], axis=1)


def controls(pose: np.ndarray, times_s: np.ndarray, scale_to_unit: float) -> np.ndarray:
    """Return the controls of a player, [N, 4]: forward and right in units a second, turn (to the right) and look (up) in deg/s.

    With a scale_to_unit that makes the top speed one, -1 to 1 of forward and right are the travel of a stick. This recovers the
    motion, not the key. A game that lets a player glide shows a key late, and a wall hides it.
    """
    motion = rates(pose, times_s)
    moved = np.stack([motion.forward, motion.right]) * scale_to_unit
    return np.stack([*moved, motion.pan_deg_s, motion.tilt_deg_s], axis=1)
