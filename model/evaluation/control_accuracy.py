"""Control accuracy: whether a generated video moves as its camera was controlled.

The motion in each clip is measured by optical flow, and its sign is compared with that of the control. A share of 0.5 is
chance. Real frames, measured in the same way, give the upper limit.

F frames, H W px.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

import cv2
import numpy as np

Direction = Literal["right", "left", "forward", "back"]
DIRECTIONS: tuple[Direction, ...] = ("right", "left", "forward", "back")
# A clip is a turn if it turns by more than MIN_TURN_DEG. It is a walk if it turns by less than MAX_WALK_TURN_DEG and the net
# distance forward or back is more than MIN_DISTANCE, in the data set's unit.
MIN_TURN_DEG, MAX_WALK_TURN_DEG, MIN_DISTANCE = 12.0, 6.0, 0.15
# Small pictures are enlarged before flow is measured, since the estimator's own patches are 8 px wide.
_FLOW_WIDTH = 256
# Squared px of the small picture: prevents a division by zero in the middle, where a walk moves nothing.
_MIDDLE_PX2 = 9.0


class VideoMotion(NamedTuple):
    """The motion in a video, summed over its frames."""

    turn: float  # how far the view turned to the right, px
    forward: float  # relative growth of the picture


class NetMotion(NamedTuple):
    """The motion of a camera over a clip."""

    yaw_deg: float  # to the right
    forward: float  # distance along the viewing direction, in the data set's unit

    @property
    def direction(self) -> Direction | None:
        """The one direction that was controlled, None for a mixture or too little motion."""
        if abs(self.yaw_deg) > MIN_TURN_DEG:
            return "right" if self.yaw_deg > 0 else "left"
        if abs(self.yaw_deg) < MAX_WALK_TURN_DEG and abs(self.forward) > MIN_DISTANCE:
            return "forward" if self.forward > 0 else "back"
        return None


def camera_motion(pose_F44: np.ndarray) -> NetMotion:
    """Return the motion of camera-to-world poses, OpenCV axes."""
    steps = np.linalg.inv(pose_F44[:-1]) @ pose_F44[1:]
    yaw = np.degrees(np.arctan2(steps[:, 0, 2], steps[:, 2, 2])).sum()
    return NetMotion(float(yaw), float(steps[:, 2, 3].sum()))


def video_motion(video_FHW3: np.ndarray) -> VideoMotion:
    """Measure the motion in a uint8 video by medians of DIS flow: horizontal for turns, (flow . r) / r^2 for walks."""
    height, width = video_FHW3.shape[1:3]
    scale = max(1, round(_FLOW_WIDTH / width))
    size = width * scale, height * scale
    grey = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC) for f in video_FHW3]
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    y, x = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    x, y = (x - size[0] / 2) / scale, (y - size[1] / 2) / scale
    square = x * x + y * y + _MIDDLE_PX2
    turn = forward = 0.0
    for before, after in pairwise(grey):
        flow_px = estimator.calc(before, after, None) / scale
        turn -= float(np.median(flow_px[..., 0]))
        forward += float(np.median((flow_px[..., 0] * x + flow_px[..., 1] * y) / square))
    return VideoMotion(turn, forward)


def follows(direction: Direction, motion: VideoMotion) -> bool:
    """Return whether the sign of a video's motion is that of a direction."""
    value = motion.turn if direction in ("right", "left") else motion.forward
    return value > 0 if direction in ("right", "forward") else value < 0


def is_blank(picture_HW3: np.ndarray, min_deviation: float = 12.0) -> bool:
    """Return whether a picture has too little structure to measure motion, as a view of a wall at the start of a clip.

    min_deviation: standard deviation of the grey levels.
    """
    return float(cv2.cvtColor(picture_HW3, cv2.COLOR_RGB2GRAY).std()) < min_deviation


class Proportion(NamedTuple):
    """A share of clips, with Wilson's 95 % interval."""

    share: float
    low: float
    high: float
    clips: int

    def __str__(self) -> str:
        return f"{self.share:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.clips}"


def proportion(hits: Iterable[bool]) -> Proportion:
    """Return the share of hits. ValueError for no clip."""
    results, z = list(hits), 1.96
    n = len(results)
    if not n:
        raise ValueError("a share needs at least one clip")
    p = sum(results) / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Proportion(p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n), n)
