"""The embedded quality network: a few patches of a frame through three small convolutions, in numpy.

Each patch gives a level of damage, how much it counts, and which fault it looks like; a frame's are their weighted means, after
Bosse et al., "Deep neural networks for no-reference and full-reference image quality assessment", IEEE TIP 2018, of which this
is a small relative. `bench/train/quality.py` trains it and writes `iqa_net.npz` beside this file; `docs/models/quality.md` says
on what.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import av
import numpy as np

from curation.iqa import FAULTS, PATCH, luma_plane, patches

WEIGHTS = os.path.join(os.path.dirname(__file__), "iqa_net.npz")
SCALE = 1 / 32  # luma to what the network was trained on, after a patch's mean is taken off
CONVOLUTIONS = ((5, 2), (3, 2), (3, 2))
"""Side and stride of each; no padding: the edge of a patch is no edge of the picture."""


class Embedded:
    """The backend `embedded`: needs neither torch nor a download."""

    name, batch = "embedded", 1

    def __init__(self) -> None:
        self._weights = _load()

    def __call__(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        return np.stack([rate(luma_plane(frame), self._weights) for frame in frames])


@lru_cache(maxsize=1)
def _load() -> dict[str, np.ndarray]:
    with np.load(WEIGHTS) as stored:
        return {name: stored[name].astype(np.float32) for name in stored}


def rate(luma_HW: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """A picture's row, float32 [1 + FAULTS]: its score and what each fault took; NaN where it is smaller than a patch."""
    found = patches(luma_HW)
    if not len(found):
        return np.full(1 + len(FAULTS), np.nan, np.float32)
    counts, level, faults = forward(found, weights)
    share = np.exp(counts - counts.max())
    share /= share.sum()
    damage = float(np.clip(share @ level, 0, 1))
    likely = np.exp(faults - faults.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    return np.concatenate([[1 - damage], damage * (share @ likely)]).astype(np.float32)


def forward(patches_PHW: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches uint8 [P, 64, 64] -> how much each counts (log) [P], its level of damage [P], its faults (logits) [P, FAULTS]."""
    x = patches_PHW.reshape(-1, PATCH, PATCH, 1).astype(np.float32)
    x = (x - x.mean((1, 2), keepdims=True)) * SCALE
    for number, (side, stride) in enumerate(CONVOLUTIONS):
        x = np.maximum(_convolve(x, weights[f"conv{number}"], side, stride) + weights[f"bias{number}"], 0)
    pooled = np.concatenate([x.mean((1, 2)), x.max((1, 2))], 1)
    hidden = np.maximum(pooled @ weights["hidden"] + weights["hidden_bias"], 0)
    out = hidden @ weights["out"] + weights["out_bias"]
    return out[:, 0], out[:, 1], out[:, 2:]


def _convolve(x: np.ndarray, kernel: np.ndarray, side: int, stride: int) -> np.ndarray:
    """Pictures [P, H, W, C] with kernel [side * side * C, D] -> [P, H', W', D], no padding.

    One small product a row of pixels: a large one makes BLAS start a thread on every core, which wait for each other.
    """
    view: Any = np.lib.stride_tricks.sliding_window_view
    windows = view(x, (side, side), (1, 2))[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    p, h, w = windows.shape[:3]
    return (windows.reshape(p * h, w, -1) @ kernel).reshape(p, h, w, -1)
