"""Whether a video moves as its camera was told to: what it shows is measured by optical flow, clip by clip, and held against
the sign of what was asked. A share of 0.5 is chance; real frames, measured alike, give the ceiling.

F frames, H W px.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

import cv2
import numpy as np

Kind = Literal["right", "left", "forward", "back"]
KINDS: tuple[Kind, ...] = ("right", "left", "forward", "back")
# A clip counts as a turn from so many degrees on, and as a walk from so much net way in the data set's unit, if it turns less
# than the second angle.
TURN_DEG, STRAIGHT_DEG, WAY = 12.0, 6.0, 0.15
# Small pictures are enlarged before flow is measured: the estimator's own patches are 8 px wide.
_FLOW_WIDTH = 256
# Squared px of the small picture: keeps the middle, where a walk moves nothing, from dividing by nothing.
_MIDDLE_PX2 = 9.0


class Motion(NamedTuple):
    """What a video shows, summed over its frames: px to the right that the view turned; by how much the picture grew."""

    turn: float
    forward: float


class Told(NamedTuple):
    """What a camera did over a clip: yaw to the right in degrees, way ahead in the data set's unit along where it looked."""

    yaw_deg: float
    ahead: float

    @property
    def kind(self) -> Kind | None:
        """The one thing that was asked of the clip, None where it is mixed or too little."""
        if abs(self.yaw_deg) > TURN_DEG:
            return "right" if self.yaw_deg > 0 else "left"
        if abs(self.yaw_deg) < STRAIGHT_DEG and abs(self.ahead) > WAY:
            return "forward" if self.ahead > 0 else "back"
        return None


def told(pose_F44: np.ndarray) -> Told:
    """Of camera-to-world poses, OpenCV axes."""
    steps = np.linalg.inv(pose_F44[:-1]) @ pose_F44[1:]
    yaw = np.degrees(np.arctan2(steps[:, 0, 2], steps[:, 2, 2])).sum()
    return Told(float(yaw), float(steps[:, 2, 3].sum()))


def shown(video_FHW3: np.ndarray) -> Motion:
    """Of a video uint8: medians of DIS flow from frame to frame; horizontal for turns, (flow . r) / r^2 for walks."""
    height, width = video_FHW3.shape[1:3]
    scale = max(1, round(_FLOW_WIDTH / width))
    size = width * scale, height * scale
    grey = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC) for f in video_FHW3]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    y, x = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    x, y = (x - size[0] / 2) / scale, (y - size[1] / 2) / scale
    square = x * x + y * y + _MIDDLE_PX2
    turn = forward = 0.0
    for before, after in pairwise(grey):
        moved = flow.calc(before, after, None) / scale
        turn -= float(np.median(moved[..., 0]))
        forward += float(np.median((moved[..., 0] * x + moved[..., 1] * y) / square))
    return Motion(turn, forward)


def obeys(kind: Kind, motion: Motion) -> bool:
    """Whether the sign of what is shown is that of what was asked."""
    value = motion.turn if kind in ("right", "left") else motion.forward
    return value > 0 if kind in ("right", "forward") else value < 0


def blank(picture_HW3: np.ndarray, least: float = 12.0) -> bool:
    """Whether a picture has nothing to see motion by: a start against a wall. least: deviation of its grey levels."""
    return float(cv2.cvtColor(picture_HW3, cv2.COLOR_RGB2GRAY).std()) < least


class Share(NamedTuple):
    """A share of n, with Wilson's interval at 95 %."""

    share: float
    low: float
    high: float
    clips: int

    def __str__(self) -> str:
        return f"{self.share:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.clips}"


def share(hits: Iterable[bool]) -> Share:
    """ValueError for no clip at all."""
    found, z = list(hits), 1.96
    n = len(found)
    if not n:
        raise ValueError("a share of no clip at all")
    p = sum(found) / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n), n)
