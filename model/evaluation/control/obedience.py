"""Obedience by class of action: how often a video moves as it was controlled, next to the same measure on real frames.

The poses of a window name the action, and the median of the optical flow tells whether the picture moves that way. Sideways
steps move the picture as turns do, and are told apart by the controls only.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from model.evaluation.control_accuracy import Proportion, proportion
from model.evaluation.general.metric import Metric

METRIC = Metric(
    "Obedience",
    "share of windows",
    "up",
    "Share of windows of about a second whose flow has the sign of their only action; still: that hardly moves. Chance is 0.5.",
    "Our definition; MIND reports errors by class of action in the same way.",
)
Action = Literal["right", "left", "up", "down", "forward", "back", "strafe_right", "strafe_left", "still"]
ACTIONS: tuple[Action, ...] = ("right", "left", "up", "down", "forward", "back", "strafe_right", "strafe_left", "still")
# A window turns or tilts if it does so by more than the first, and does not below the second; it walks if it moves by more than
# MIN_DISTANCE in the data set's unit and mostly in one direction.
MIN_TURN_DEG, MAX_OTHER_DEG, MIN_DISTANCE, _STILL_DISTANCE, _PURE = 8.0, 4.0, 0.15, 0.02, 2.0
_STILL_PX = 0.15  # mean flow per step at 256 px wide
_MIDDLE_PX2 = 9.0


class WindowMotion(NamedTuple):
    """The motion in a window's pictures, summed over its steps: px at the flow's size, growth as a share, px per step."""

    right: float
    up: float
    grown: float
    mean_px: float


class Window(NamedTuple):
    """A window with one action, and the motion in it."""

    action: Action
    motion: WindowMotion

    @property
    def obeys(self) -> bool:
        return follows(self.action, self.motion)


def action_of(pose_F44: np.ndarray) -> Action | None:
    """Return the one action of a window's poses (camera-to-world, OpenCV axes), None for a mixture or too little of any."""
    steps = np.linalg.inv(pose_F44[:-1]) @ pose_F44[1:]
    yaw = float(np.degrees(np.arctan2(steps[:, 0, 2], steps[:, 2, 2])).sum())
    pitch = float(np.degrees(np.arcsin(np.clip(-steps[:, 1, 2], -1, 1))).sum())  # up is positive, since y is down
    side, ahead = float(steps[:, 0, 3].sum()), float(steps[:, 2, 3].sum())
    moved = float(np.linalg.norm(steps[:, :3, 3], axis=1).sum())
    if moved < _STILL_DISTANCE and max(abs(yaw), abs(pitch)) < MAX_OTHER_DEG / 4:
        return "still"
    if abs(yaw) > MIN_TURN_DEG and abs(pitch) < MAX_OTHER_DEG:
        return "right" if yaw > 0 else "left"
    if abs(pitch) > MIN_TURN_DEG and abs(yaw) < MAX_OTHER_DEG:
        return "up" if pitch > 0 else "down"
    if max(abs(yaw), abs(pitch)) > MAX_OTHER_DEG or max(abs(side), abs(ahead)) < MIN_DISTANCE:
        return None
    if abs(ahead) > _PURE * abs(side):
        return "forward" if ahead > 0 else "back"
    if abs(side) > _PURE * abs(ahead):
        return "strafe_right" if side > 0 else "strafe_left"
    return None


def window_motion(flows: Sequence[np.ndarray]) -> WindowMotion:
    """Return the motion in the flows [H, W, 2] of a window's consecutive pairs, by medians over the picture."""
    height, width = flows[0].shape[:2]
    y, x = np.mgrid[0:height, 0:width] + 0.5
    x, y = x - width / 2, y - height / 2
    square = x * x + y * y + _MIDDLE_PX2 * (width / 64) ** 2
    right = -sum(float(np.median(flow[..., 0])) for flow in flows)
    up = sum(float(np.median(flow[..., 1])) for flow in flows)
    grown = sum(float(np.median((flow[..., 0] * x + flow[..., 1] * y) / square)) for flow in flows)
    return WindowMotion(right, up, grown, float(np.mean([np.hypot(*np.moveaxis(flow, 2, 0)).mean() for flow in flows])))


def follows(action: Action, motion: WindowMotion) -> bool:
    """Return whether the motion has the sign of an action. For `still`: whether it hardly moves."""
    if action == "still":
        return motion.mean_px < _STILL_PX
    value = {"up": motion.up, "down": -motion.up, "forward": motion.grown, "back": -motion.grown}.get(action)
    if value is None:
        value = motion.right if action in ("right", "strafe_right") else -motion.right
    return value > 0


def windows(flows: Sequence[np.ndarray], pose_F44: np.ndarray, steps: int) -> list[Window]:
    """Return the windows of so many steps of a video that have one action. flows: of the F - 1 pairs of its frames."""
    found = []
    for start in range(0, len(flows) - steps + 1, steps):
        action = action_of(pose_F44[start : start + steps + 1])
        if action:
            found.append(Window(action, window_motion(flows[start : start + steps])))
    return found


def shares(found: Iterable[Window]) -> dict[str, Proportion]:
    """Return the share of windows that obey, by action, and of all. Actions without a window are left out."""
    rows = list(found)
    parts = {str(action): [row.obeys for row in rows if row.action == action] for action in ACTIONS}
    table = {action: proportion(hits) for action, hits in parts.items() if hits}
    return table | ({"all": proportion([row.obeys for row in rows])} if rows else {})
