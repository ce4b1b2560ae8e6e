"""The mirror test: a path and its reverse. Each frame of the way back should be the frame of the way there at the same pose.

F frames, H W px.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras.rotation import angle_deg
from model.evaluation.general.metric import Metric
from model.evaluation.general.paired import psnr_per_frame, ssim_per_frame

METRIC = Metric(
    "Mirror test",
    "dB, and as of each distance",
    "up",
    "Distance of frame t from frame 2T - t of a path and its reverse, for each t < T.",
    "MIND, generated-scene consistency.",
)
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class MirrorCurve(NamedTuple):
    """Distances by how long ago a pose was seen. age: frames between the two, rising. The others have a value for each age."""

    age: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    lpips: np.ndarray | None = None


def mirror_pairs(frames: int) -> list[tuple[int, int]]:
    """Return the pairs of frames of a path of T steps there and T back (2T + 1 frames), the nearest to the turn first.

    ValueError for an even number of frames, which has no middle.
    """
    if frames % 2 == 0 or frames < 3:
        raise ValueError(f"a path and its reverse have an odd number of frames, at least 3, not {frames}")
    middle = frames // 2
    return [(middle - k, middle + k) for k in range(1, middle + 1)]


def mirror_curve(video_FHW3: np.ndarray, lpips: Distance | None = None) -> MirrorCurve:
    """Compare the way back with the way there in a uint8 video of a mirrored path."""
    pairs = mirror_pairs(len(video_FHW3))
    there, back = (video_FHW3[[pair[side] for pair in pairs]] for side in (0, 1))
    return MirrorCurve(
        np.array([b - a for a, b in pairs]),
        psnr_per_frame(back, there),
        ssim_per_frame(back, there),
        lpips(back, there) if lpips else None,
    )


def is_mirrored(pose_F44: np.ndarray, max_deg: float = 1.0, max_share: float = 0.02) -> bool:
    """Return whether poses are a path and its reverse: to within an angle, and a share of the path's extent."""
    if len(pose_F44) % 2 == 0 or len(pose_F44) < 3:
        return False
    back = pose_F44[::-1]
    extent = float(np.ptp(pose_F44[:, :3, 3], axis=0).max())
    moved = extent > 1e-9 or float(angle_deg(pose_F44[:1, :3, :3].transpose(0, 2, 1) @ pose_F44[:, :3, :3]).max()) > max_deg
    apart = float(np.linalg.norm(pose_F44[:, :3, 3] - back[:, :3, 3], axis=1).max())
    turned = float(angle_deg(pose_F44[:, :3, :3].transpose(0, 2, 1) @ back[:, :3, :3]).max())
    return moved and apart <= max_share * extent + 1e-9 and turned <= max_deg


def mean_curve(curves: Sequence[MirrorCurve]) -> MirrorCurve:
    """Return the mean over curves of the same length."""
    lpips = [curve.lpips for curve in curves if curve.lpips is not None]
    return MirrorCurve(
        curves[0].age,
        np.mean([curve.psnr for curve in curves], 0),
        np.mean([curve.ssim for curve in curves], 0),
        np.mean(lpips, 0) if len(lpips) == len(curves) else None,
    )
