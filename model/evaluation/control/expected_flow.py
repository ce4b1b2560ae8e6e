"""Expected optical flow of a controlled camera next to the observed flow: obedience without a judge and without depth.

The flow of a rotation follows from the controls and the intrinsics alone, exactly. That of a translation depends on depth. Only
its direction in each place is known: along the line through the epipole.

H W px of the picture. Poses are camera-to-world, OpenCV axes. Intrinsics are fx, fy, cx, cy in px, corner-origin.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras.rotation import angle_deg
from model.evaluation.general.metric import Metric

GAIN = Metric(
    "Rotation gain",
    "",
    "",
    "Least-squares factor from the expected flow of the controlled rotation to the observed flow; 1 is exact, 0 no response.",
    "Our definition; FastVideo's evaluation has the idea with a calibrated kinematic model.",
)
COSINE = Metric(
    "Flow agreement",
    "-1 to 1",
    "up",
    "Cosine of observed and expected flow over all pixels and steps of controlled rotation, each step at equal weight.",
    "Our definition.",
)
PARALLAX = Metric(
    "Parallax agreement",
    "-1 to 1",
    "up",
    "Mean cosine of what rotation does not explain with the direction that the controlled translation gives each pixel.",
    "Our definition; the direction is that of Longuet-Higgins and Prazdny 1980.",
)
# A step counts as a rotation if it turns this far, and as a translation if its motion is this much of the largest in the video.
MIN_STEP_DEG, _MIN_SHARE = 0.2, 0.2
_MIN_RESIDUAL_PX = 0.3


class FlowAgreement(NamedTuple):
    """How far observed flow is what the controls make expected; NaN where no step counts.

    gain, cosine, error_px: of the steps that turn. The error is the mean length of the difference. parallax: of the others.
    """

    gain: float
    cosine: float
    error_px: float
    turning_steps: int
    parallax: float
    moving_steps: int


def rotation_flow(rotation_33: np.ndarray, intrinsics_4: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the flow of a camera that only turns, float64 [H, W, 2], px to the right and down.

    rotation: from the axes of the second frame to those of the first, as in inv(pose[0]) @ pose[1].
    """
    fx, fy, cx, cy = intrinsics_4
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1) @ rotation_33  # each is R^T ray
    depth = np.where(np.abs(rays[..., 2]) < 1e-9, 1e-9, rays[..., 2])
    return np.stack([fx * rays[..., 0] / depth + cx - x, fy * rays[..., 1] / depth + cy - y], -1)


def translation_direction(step_44: np.ndarray, intrinsics_4: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the direction in which a static scene moves because of a step's translation, [H, W, 2], in any length.

    To first order, after the rotation is taken out: (-f t_x + x t_z, -f t_y + y t_z), x and y from the principal point.
    """
    fx, fy, cx, cy = intrinsics_4
    tx, ty, tz = step_44[:3, 3]
    x, y = np.meshgrid(np.arange(width) + 0.5 - cx, np.arange(height) + 0.5 - cy)
    return np.stack([-fx * tx + x * tz, -fy * ty + y * tz], -1)


def flow_agreement(flows: Sequence[np.ndarray], pose_F44: np.ndarray, intrinsics_4: np.ndarray) -> FlowAgreement:
    """Compare the flows [H, W, 2] of F - 1 consecutive pairs with what the controlled poses of F frames make expected."""
    steps = np.linalg.inv(pose_F44[:-1]) @ pose_F44[1:]
    if len(steps) != len(flows):
        raise ValueError(f"{len(flows)} flows need {len(flows) + 1} poses, not {len(pose_F44)}")
    turns = angle_deg(steps[:, :3, :3])
    lengths = np.linalg.norm(steps[:, :3, 3], axis=1)
    moving = lengths > max(1e-9, _MIN_SHARE * lengths.max(initial=0.0))
    cosines, errors, parallax, products = [], [], [], np.zeros(2)
    for flow, step, turn, moves in zip(flows, steps, turns, moving, strict=True):
        height, width = flow.shape[:2]
        expected = rotation_flow(step[:3, :3], intrinsics_4, height, width)
        if turn >= MIN_STEP_DEG and not moves:
            dot = float((flow * expected).sum())
            products += dot, float((expected**2).sum())
            cosines.append(dot / float(np.linalg.norm(flow) * np.linalg.norm(expected) + 1e-12))
            errors.append(float(np.linalg.norm(flow - expected, axis=2).mean()))
        if moves:
            parallax.append(_parallax(flow - expected, translation_direction(step, intrinsics_4, height, width)))
    known = [value for value in parallax if np.isfinite(value)]
    return FlowAgreement(
        float(products[0] / products[1]) if cosines else float("nan"),
        float(np.mean(cosines)) if cosines else float("nan"),
        float(np.mean(errors)) if errors else float("nan"),
        len(cosines),
        float(np.mean(known)) if known else float("nan"),
        len(known),
    )


def _parallax(residual_HW2: np.ndarray, direction_HW2: np.ndarray) -> float:
    """Return the mean cosine where something moves at all; NaN where nothing does."""
    length, reach = np.linalg.norm(residual_HW2, axis=2), np.linalg.norm(direction_HW2, axis=2)
    counts = (length > _MIN_RESIDUAL_PX) & (reach > 1e-6)
    if counts.mean() < 0.01:
        return float("nan")
    return float(((residual_HW2 * direction_HW2).sum(2)[counts] / (length * reach)[counts]).mean())
