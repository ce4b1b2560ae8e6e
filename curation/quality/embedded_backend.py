"""The embedded quality backend: numbers of a few patches of a frame (`curation.quality.features`) through a small network.

Each patch gives a level of damage, how much it counts, and which fault it looks like; a frame's are their weighted means, after
Bosse et al., "Deep neural networks for no-reference and full-reference image quality assessment", IEEE TIP 2018.
`bench/shipped_weights/train_quality.py` trains it and writes `iqa_net.npz` here; `docs/models/quality.md` is its card.
"""

import os
from collections.abc import Sequence
from functools import lru_cache

import av
import numpy as np

from curation.quality.features import features
from curation.quality.iqa import FAULTS, luma_plane, patches

WEIGHTS = os.path.join(os.path.dirname(__file__), "iqa_net.npz")
FAR = 5.0
"""Numbers further from their mean over the training pictures than this many deviations count as this far."""


class Embedded:
    """The backend `embedded`: needs neither torch nor a download."""

    name, batch = "embedded", 1

    def __init__(self) -> None:
        self._weights = load(WEIGHTS)

    def __call__(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        return np.stack([rate(luma_plane(frame), self._weights) for frame in frames])


@lru_cache(maxsize=1)
def load(path: str) -> dict[str, np.ndarray]:
    """The arrays of `bench.shipped_weights.quality_network.exported`."""
    with np.load(path) as stored:
        return {name: stored[name].astype(np.float32) for name in stored}


def rate(luma_HW: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """A picture's row, float32 [1 + FAULTS]: its score and what each fault took; NaN where it is smaller than a patch."""
    found = patches(luma_HW)
    if not len(found):
        return np.full(1 + len(FAULTS), np.nan, np.float32)
    counts, level, faults = forward(features(found), weights)
    share = _softmax(counts)
    damage = float(np.clip(share @ level, 0, 1))
    return np.concatenate([[1 - damage], damage * (share @ _softmax(faults))]).astype(np.float32)


def forward(features_PF: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much each patch counts (log) [P], its level of damage [P], its faults (logits) [P, FAULTS]."""
    x = np.clip((features_PF - weights["mean"]) / weights["spread"], -FAR, FAR)
    for layer in ("first", "second"):
        x = np.maximum(x @ weights[layer] + weights[f"{layer}_bias"], 0)
    out = x @ weights["out"] + weights["out_bias"]
    return out[:, 0], out[:, 1], out[:, 2:]


def _softmax(x: np.ndarray) -> np.ndarray:
    """Shares that add up to one along the last axis."""
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
