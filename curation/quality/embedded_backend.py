"""The embedded quality backend: a small network over the features of a few patches of a frame (`curation.quality.features`).

For each patch the network gives a level of damage, a weight, and the fault that it looks like. A frame's values are the
weighted means over its patches, after Bosse et al., "Deep neural networks for no-reference and full-reference image quality
assessment", IEEE TIP 2018. `bench/shipped_weights/train_quality.py` trains the network and writes `iqa_net.npz` to this folder.
`docs/models/quality.md` is its model card.

Where a frame's own stream says how coarsely it was quantised, that counts too (`curation.quality.quantiser`): the picture alone
hardly shows what VP9 and MPEG-4 leave out.
"""

import os
from collections.abc import Sequence
from functools import lru_cache

import av
import numpy as np

from curation.quality.features import patch_features
from curation.quality.iqa import FAULTS, luma_plane, select_patches
from curation.quality.quantiser import coded_level

WEIGHTS = os.path.join(os.path.dirname(__file__), "iqa_net.npz")
MAX_DEVIATIONS = 5.0
"""Features are clipped to this many standard deviations from their mean over the training pictures."""


class EmbeddedIqa:
    """The backend `embedded`. It needs neither torch nor a download."""

    name, batch = "embedded", 1

    def __init__(self) -> None:
        self._weights = load_weights(WEIGHTS)

    def __call__(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        rows = [rate_luma(luma_plane(frame), self._weights) for frame in frames]
        return np.stack([with_coding(row, coded_level(frame)) for row, frame in zip(rows, frames, strict=True)])


@lru_cache(maxsize=8)
def load_weights(path: str) -> dict[str, np.ndarray]:
    """Load the arrays that `bench.shipped_weights.quality_network.export_arrays` returns."""
    with np.load(path) as stored:
        return {name: stored[name].astype(np.float32) for name in stored}


def rate_luma(luma_HW: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return a picture's row, float32 [1 + FAULTS]: its score and what each fault took; NaN if it is smaller than a patch."""
    squares = select_patches(luma_HW)
    return rate_features(patch_features(squares) if len(squares) else np.empty((0, 0), np.float32), weights)


def rate_features(features_PF: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return the row of a picture whose patches have these features, as `rate_luma` does."""
    if not len(features_PF):
        return np.full(1 + len(FAULTS), np.nan, np.float32)
    log_weights, level, faults = run_network(features_PF, weights)
    share = _softmax(log_weights)
    damage = float(np.clip(share @ level, 0, 1))
    return np.concatenate([[1 - damage], damage * (share @ _softmax(faults))]).astype(np.float32)


def with_coding(row: np.ndarray, level: float | None) -> np.ndarray:
    """Return a row whose loss by compression is at least the level of damage of the frame's quantiser. None: not known."""
    at = 1 + FAULTS.index("compressed")
    if level is None or not row[at] < level:  # also where the picture could not be rated
        return row
    raised = row.copy()
    raised[at] = min(level, row[0] + row[at])
    raised[0] = row[0] + row[at] - raised[at]
    return raised


def run_network(features_PF: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each patch's weight (log) [P], level of damage [P] and faults (logits) [P, FAULTS]."""
    x = np.clip((features_PF - weights["mean"]) / weights["spread"], -MAX_DEVIATIONS, MAX_DEVIATIONS)
    for layer in ("first", "second"):
        x = np.maximum(x @ weights[layer] + weights[f"{layer}_bias"], 0)
    out = x @ weights["out"] + weights["out_bias"]
    return out[:, 0], out[:, 1], out[:, 2:]


def _softmax(x: np.ndarray) -> np.ndarray:
    """Return shares that add up to one along the last axis."""
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
