"""Temporal consistency: whether frames stay alike where they should.

The paper names the measure and no formula. Two are common. One compares features of frames, which needs an encoder's weights.
The other warps each frame by its optical flow onto the one before, and needs nothing.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from curation import model_files
from curation.partition.optical_flow import Flow, FramePair
from model.evaluation.general.metric import Metric

FEATURES = Metric(
    "Temporal consistency",
    "0 to 1",
    "up",
    "Mean over frames of max(0, cosine) of an image encoder's features with those of the frame before and of the first frame.",
    "VBench, subject consistency (DINO) and background consistency (CLIP) (Huang et al. 2024).",
)
WARP = Metric(
    "Warp consistency",
    "0 to 1",
    "up",
    "1 - mean absolute difference / 255 of each frame and the next, warped onto it by optical flow, where flow is consistent.",
    "The warping error of Lai et al. 2018, with a forward-backward check instead of learned masks.",
)
Encode = Callable[[np.ndarray], np.ndarray]
# Flow forward and back must cancel to this many px, plus a share of its length (Sundaram et al. 2010).
_SLACK_PX, _SLACK_SHARE = 0.7, 0.1


def feature_consistency(video_FHW3: np.ndarray, encode: Encode) -> float:
    """Return the consistency of a uint8 video by features. NaN for a single frame."""
    features = encode(video_FHW3).astype(float)
    if len(features) < 2:
        return float("nan")
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-12
    before = np.maximum(0, (features[1:] * features[:-1]).sum(1))
    first = np.maximum(0, features[1:] @ features[0])
    return float(((before + first) / 2).mean())


def warp_consistency(video_FHW3: np.ndarray, flow: Flow) -> float:
    """Return the consistency of a uint8 video under its own motion. NaN where no flow is consistent."""
    errors = [_warp_error(a, b, flow) for a, b in pairwise(video_FHW3)]
    known = [error for error in errors if np.isfinite(error)]
    return float(1 - np.mean(known) / 255) if known else float("nan")


def _warp_error(a: np.ndarray, b: np.ndarray, flow: Flow) -> float:
    forward, back = flow([FramePair(a, b)])[0], flow([FramePair(b, a)])[0]
    height, width = a.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    there_and_back = forward + cv2.remap(back, to_x, to_y, cv2.INTER_LINEAR)
    length = np.linalg.norm(forward, axis=2)
    inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
    consistent = inside & (np.linalg.norm(there_and_back, axis=2) < _SLACK_PX + _SLACK_SHARE * length)
    if not consistent.any():
        return float("nan")
    warped = cv2.remap(b, to_x, to_y, cv2.INTER_LINEAR)
    return float(np.abs(warped.astype(float) - a)[consistent].mean())


@cache
def load_encoder(name: str) -> Encode:
    """Load an image encoder of transformers (DINOv2, CLIP ...) by its folder or hub name. Unavailable where it is missing.

    A frame's feature is the pooled output, or else the mean over tokens.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModel

    with model_files.explain_if_missing(name):
        folder = model_files.resolve_model(name)
        processor, network = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    network = getattr(network, "vision_model", network).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)

    @torch.no_grad()
    def encode(video_FHW3: np.ndarray) -> np.ndarray:
        rows: list[Any] = []
        for k in range(0, len(video_FHW3), 8):
            inputs = processor(images=list(video_FHW3[k : k + 8]), return_tensors="pt").to(device)
            output = network(pixel_values=inputs["pixel_values"])
            pooled = getattr(output, "pooler_output", None)
            rows.append((output.last_hidden_state.mean(1) if pooled is None else pooled).float().cpu().numpy())
        return np.concatenate(rows)

    return encode
