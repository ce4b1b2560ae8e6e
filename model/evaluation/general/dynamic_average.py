"""Dynamic Average: how much a video moves, in px, instead of whether it moves."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from curation.partition.optical_flow import Flow, FramePair
from model.evaluation.general.metric import Metric

FPS, TOP_SHARE = 8.0, 0.05
METRIC = Metric(
    "Dynamic average",
    "px per step at 8 fps",
    "",
    "Mean over pairs of frames, at 8 frames a second, of the mean of the largest 5 % of optical-flow magnitudes.",
    "The paper's section 5.2.1, from VBench's dynamic_degree (RAFT): the magnitude instead of the share of moving videos.",
)


def dynamic_average(video_FHW3: np.ndarray, flow: Flow) -> float:
    """Return the average of a uint8 video whose frames are 1/8 s apart. NaN for a single frame.

    The unit is px of these pictures: a video that is scaled down has a smaller value.
    """
    pairs = [FramePair(a, b) for a, b in pairwise(video_FHW3)]
    return float(np.mean([top_magnitude(field) for field in flow(pairs)])) if pairs else float("nan")


def top_magnitude(flow_HW2: np.ndarray, share: float = TOP_SHARE) -> float:
    """Return the mean of the largest magnitudes of a flow field, px; `share` of the pixels, at least one."""
    magnitude = np.sort(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]), axis=None)
    return float(magnitude[-max(1, int(len(magnitude) * share)) :].mean())


def is_dynamic(magnitudes: Sequence[float], height: int, width: int, frames: int) -> bool:
    """Return VBench's own binary verdict: enough pairs move by more than 6 px at 256 px of the shorter side."""
    limit, needed = 6 * min(height, width) / 256, round(4 * frames / 16)
    return sum(value > limit for value in magnitudes) >= needed
