"""How the picture changes beside its flow, in the same cells of 20 px: what tells a door, a shot or a weapon from a walk."""

import cv2
import numpy as np

from curation.partition.optical_flow import cell_means, grid

CHANNELS = 4
# Steps in which each channel is kept as a byte: grey levels, grey levels, px/frame; what is larger says no more.
_STEP = np.array([1.0, 0.25, 0.5, 0.0625], np.float32)
_OFFSET = np.array([128.0, 0.0, 0.0, 0.0], np.float32)


def looks(earlier: np.ndarray, before: np.ndarray, after: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Change in cells, uint8 [R, C, 4], of grays uint8 [H, W]: `earlier`, a tenth of a second back, and a pair with its flow.

    Channels: mean change since `earlier`; what is left of the pair's change where flow brings `after` back; mean size of
    the change since `earlier`; how much the flow differs inside the cell. In steps of `_STEP`; read back by `unpacked`.
    """
    back = cv2.remap(after, grid(*before.shape) + flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    means = cell_means(flow)
    uneven = np.sqrt(np.maximum(cell_means(flow * flow) - means * means, 0).sum(2))
    cells = [
        cell_means(after).astype(np.float32)[..., 0] - cell_means(earlier)[..., 0] + _OFFSET[0],
        cell_means(cv2.convertScaleAbs(cv2.absdiff(back, before), alpha=1 / _STEP[1]))[..., 0],
        cell_means(cv2.convertScaleAbs(cv2.absdiff(after, earlier), alpha=1 / _STEP[2]))[..., 0],
        uneven / _STEP[3],
    ]
    return np.clip(np.rint(np.dstack(cells)), 0, 255).astype(np.uint8)


def unpacked(looks_: np.ndarray) -> np.ndarray:
    """Bytes [..., 4] of `looks` in grey levels and px/frame: float32."""
    return (looks_.astype(np.float32) - _OFFSET) * _STEP
