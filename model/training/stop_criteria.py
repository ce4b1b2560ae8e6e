"""When distribution matching has gone too far: pictures become oversaturated, or motion fades.

Both are measured on the student's windows against the true videos of the same starts and cameras: the variance of latents, and
the mean length of optical flow. Sums are kept over the steps of a measurement, and stored in checkpoints.

B batch, C latent channels, K latents, F frames, H W px.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from model.backbone.vae import to_uint8
from model.training.settings import DistillationSettings

# Width of the pictures in which flow is measured: smaller ones are enlarged, larger ones reduced.
_FLOW_WIDTH = 256


@dataclass
class StopCriteria:
    """Sums of the steps since the last measurement."""

    steps: int = 0
    variance: float = 0.0  # of the student's latents
    true_variance: float = 0.0
    flow_px: float = 0.0  # in the student's videos
    true_flow_px: float = 0.0

    def add(self, variance: float, true_variance: float, flow_px: float, true_flow_px: float) -> None:
        """Add what was measured in a step."""
        self.steps += 1
        self.variance += variance
        self.true_variance += true_variance
        self.flow_px += flow_px
        self.true_flow_px += true_flow_px

    def measured(self) -> dict[str, float]:
        """Return both ratios of student to truth; a flow ratio of 1 where nothing moves in the true videos."""
        flow_ratio = self.flow_px / self.true_flow_px if self.true_flow_px > 0 else 1.0
        return {"variance_ratio": self.variance / max(self.true_variance, 1e-12), "flow_ratio": flow_ratio}

    def state(self) -> dict[str, Any]:
        """Return the sums as plain data."""
        return asdict(self)


def broken(measured: dict[str, float], settings: DistillationSettings) -> list[str]:
    """Describe the stop criteria that a measurement breaks."""
    reasons = []
    if not measured["variance_ratio"] <= settings.max_variance_ratio:  # nor is it a number where a student has diverged
        reasons.append(
            f"oversaturated: the student's latents have {measured['variance_ratio']:.2f} times the variance of true ones, "
            f"more than distillation.max_variance_ratio {settings.max_variance_ratio:g}"
        )
    if measured["flow_ratio"] < settings.min_flow_ratio:
        reasons.append(
            f"motion fades: the student's videos have {measured['flow_ratio']:.2f} of the flow of true ones, less than "
            f"distillation.min_flow_ratio {settings.min_flow_ratio:g}"
        )
    return reasons


def variance(x0_BCKhw: Tensor) -> float:
    """Return the variance of latents around the mean of each channel of a sample, averaged over the batch."""
    return float(x0_BCKhw.detach().float().var((2, 3, 4), unbiased=False).mean())


@torch.no_grad()
def flow_length(video_B3FHW: Tensor) -> float:
    """Return the mean length of DIS flow between neighbouring frames, px of the pictures, averaged over the batch."""
    width = video_B3FHW.shape[-1]
    scale = _FLOW_WIDTH / width
    size = _FLOW_WIDTH, round(video_B3FHW.shape[-2] * scale)
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    lengths = []
    for video in to_uint8(video_B3FHW).permute(0, 2, 3, 4, 1).cpu().numpy():
        grey = [cv2.resize(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), size) for frame in video]
        lengths += [float(np.linalg.norm(estimator.calc(a, b, None), axis=-1).mean()) / scale for a, b in pairwise(grey)]
    return float(np.mean(lengths))
