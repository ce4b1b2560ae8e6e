"""Temporal flickering: how little a video changes from frame to frame. It means something only where nothing should move."""

import itertools

import numpy as np

from model.evaluation.general.metric import Metric

METRIC = Metric(
    "Flicker score",
    "0 to 1",
    "up",
    "(255 - mean absolute difference of consecutive frames) / 255, over all pixels and channels. Motion lowers it too.",
    "VBench, temporal_flickering (Huang et al. 2024), which measures it on static videos only.",
)


def flicker_score(video_FHW3: np.ndarray) -> float:
    """Return the score of a uint8 video; 1 for equal frames. NaN for a single frame."""
    if len(video_FHW3) < 2:
        return float("nan")
    pairs = itertools.pairwise(video_FHW3)
    differences = [np.abs(b.astype(np.int16) - a.astype(np.int16)).mean() for a, b in pairs]
    return float((255 - np.mean(differences)) / 255)
