"""Distances of a video from the real one of the same controls, frame by frame: PSNR, SSIM and LPIPS."""

from collections.abc import Callable

import cv2
import numpy as np
import torch

from model.evaluation.general.metric import Metric
from model.evaluation.pictures import Lpips

PSNR = Metric("PSNR", "dB", "up", "Peak signal-to-noise ratio to the real frame, mean over frames, at most 100.", "")
SSIM = Metric(
    "SSIM",
    "-1 to 1",
    "up",
    "Structural similarity of luma to the real frame, Gaussian window of 11 px with deviation 1.5, mean over frames.",
    "Wang et al. 2004.",
)
LPIPS = Metric("LPIPS", "", "down", "Perceptual distance to the real frame by AlexNet, mean over frames.", "Zhang et al. 2018.")
_MAX_DB = 100.0
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr_per_frame(video_FHW3: np.ndarray, real_FHW3: np.ndarray) -> np.ndarray:
    """Return the PSNR of each pair of uint8 frames, dB [F]; equal frames have 100."""
    error = ((video_FHW3.astype(np.float32) - real_FHW3) ** 2).mean((1, 2, 3))
    return np.minimum(_MAX_DB, 10 * np.log10(255**2 / np.maximum(error, 1e-12)))


def ssim_per_frame(video_FHW3: np.ndarray, real_FHW3: np.ndarray) -> np.ndarray:
    """Return the SSIM of the luma of each pair of uint8 frames, [F], over the places where the window fits."""
    pairs = zip(video_FHW3, real_FHW3, strict=True)
    return np.array([ssim(*(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).astype(np.float64) for f in pair)) for pair in pairs])


def ssim(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Return the SSIM of two pictures of grey levels 0 to 255 (Wang et al. 2004, equation 13, with their constants)."""

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5]

    mean_a, mean_b = blur(a_HW), blur(b_HW)
    variance_a, variance_b = blur(a_HW**2) - mean_a**2, blur(b_HW**2) - mean_b**2
    covariance = blur(a_HW * b_HW) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((top / ((mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2))).mean())


@torch.no_grad()
def lpips_per_frame(video_FHW3: np.ndarray, real_FHW3: np.ndarray, distance: Lpips, batch: int = 8) -> np.ndarray:
    """Return the LPIPS of each pair of uint8 frames, [F]."""

    def signed(part: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(part)).permute(0, 3, 1, 2).float() / 127.5 - 1

    parts = [slice(k, k + batch) for k in range(0, len(video_FHW3), batch)]
    return np.concatenate([distance(signed(video_FHW3[p]), signed(real_FHW3[p])).numpy() for p in parts])


def common_frames(video_FHW3: np.ndarray, real_FHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames that both have, at the size of the generated video."""
    count, (height, width) = min(len(video_FHW3), len(real_FHW3)), video_FHW3.shape[1:3]
    resized: Callable[[np.ndarray], np.ndarray] = lambda f: cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA)  # noqa: E731
    real = real_FHW3[:count]
    return video_FHW3[:count], real if real.shape[1:3] == (height, width) else np.stack([resized(f) for f in real])
