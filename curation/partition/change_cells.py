"""Measure how the picture changes apart from its flow, in cells of 20 px.

This separates a door, a shot or a weapon from a walk.
"""

import cv2
import numpy as np

from curation.partition.optical_flow import cell_means, pixel_grid

CHANNELS = 4
# What one step of each channel's byte is: grey levels, grey levels, grey levels, px/frame. Larger values are clipped.
_STEP = np.array([1.0, 0.25, 0.5, 0.0625], np.float32)
_OFFSET = np.array([128.0, 0.0, 0.0, 0.0], np.float32)


def change_cells(earlier: np.ndarray, before: np.ndarray, after: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the change in cells, uint8 [R, C, 4], between grays uint8 [H, W].

    `earlier` is a tenth of a second back; `before` and `after` are a pair with its `flow`. The channels are the mean change
    since `earlier`; what is left of the pair's change after `after` is warped back along the flow; the mean size of the change
    since `earlier`; and how much the flow differs inside the cell. They are in steps of `_STEP`; `unpack` converts them back.
    """
    back = cv2.remap(after, pixel_grid(*before.shape) + flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    means = cell_means(flow)
    uneven = np.sqrt(np.maximum(cell_means(flow * flow) - means * means, 0).sum(2))
    cells = [
        cell_means(after).astype(np.float32)[..., 0] - cell_means(earlier)[..., 0] + _OFFSET[0],
        cell_means(cv2.convertScaleAbs(cv2.absdiff(back, before), alpha=1 / _STEP[1]))[..., 0],
        cell_means(cv2.convertScaleAbs(cv2.absdiff(after, earlier), alpha=1 / _STEP[2]))[..., 0],
        uneven / _STEP[3],
    ]
    return np.clip(np.rint(np.dstack(cells)), 0, 255).astype(np.uint8)


def unpack(cells: np.ndarray) -> np.ndarray:
    """Convert the bytes [..., 4] of `change_cells` to grey levels and px/frame, float32."""
    return (cells.astype(np.float32) - _OFFSET) * _STEP
