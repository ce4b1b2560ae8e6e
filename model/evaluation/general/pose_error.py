"""Relative pose error: how far the camera of a video is from the one that was asked for, after a Sim3 alignment.

evo's relative pose error, from frame to frame. The alignment (Umeyama 1991) removes scale and a global pose. It is not defined
where the true path is a point, and leaves the roll about it open where that path is a line; docs/evaluation.md has the rules.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras.klt.agreement import umeyama
from curation.cameras.rotation import angle_deg
from model.evaluation.general.metric import Metric

TRANSLATION = Metric(
    "RPE trans",
    "data set's unit per step",
    "down",
    "Root mean square over frames of |trans(E_i)|, E_i = (Q_i^-1 Q_(i+1))^-1 (P_i^-1 P_(i+1)), after Sim3 alignment.",
    "Sturm et al. 2012, as evo computes it; the paper's section 5.2.1. The paper gives no unit.",
)
ROTATION = Metric(
    "RPE rot",
    "degrees per step",
    "down",
    "Root mean square over frames of the angle of E_i, as for RPE trans. No alignment changes it.",
    "Sturm et al. 2012, as evo computes it.",
)
# A path whose positions deviate from their mean by less than this share of the largest deviation has no extent there.
_RANK_SHARE = 1e-4


class PoseError(NamedTuple):
    """RPE after the alignment; NaN where it is not defined.

    rank: dimensions of the true path: 0 a point (rotation only: no scale, so no RPE trans), 1 a line (scale by path length),
    2 and 3 Umeyama. scale: from the estimate's unit to the true one.
    """

    trans: float
    rot_deg: float
    rank: int
    scale: float


def path_rank(positions_N3: np.ndarray, min_extent: float = 1e-6) -> int:
    """Return in how many dimensions a path extends: 0 to 3. min_extent: in its unit; a path of less is a point."""
    singular = np.linalg.svd(positions_N3 - positions_N3.mean(0), compute_uv=False) / np.sqrt(len(positions_N3))
    if singular[0] < min_extent:
        return 0
    return int((singular > _RANK_SHARE * singular[0]).sum())


def pose_error(estimate_F44: np.ndarray, truth_F44: np.ndarray, min_extent: float = 1e-6) -> PoseError:
    """Compare camera-to-world poses of the same frames. ValueError for different lengths or a single frame.

    min_extent: true paths of less are points, such as the bob of a player who stands.
    """
    if estimate_F44.shape != truth_F44.shape or len(truth_F44) < 2:
        raise ValueError(f"poses of the same frames are needed, at least two: {estimate_F44.shape} and {truth_F44.shape}")
    rank, scale = path_rank(truth_F44[:, :3, 3], min_extent), float("nan")
    rot = _rms(angle_deg(_steps(truth_F44)[:, :3, :3].transpose(0, 2, 1) @ _steps(estimate_F44)[:, :3, :3]))
    if rank >= 2 and path_rank(estimate_F44[:, :3, 3]) >= 2:
        scale, _, _ = umeyama(estimate_F44[:, :3, 3], truth_F44[:, :3, 3])
    elif rank >= 1:
        lengths = [np.linalg.norm(np.diff(pose[:, :3, 3], axis=0), axis=1).sum() for pose in (estimate_F44, truth_F44)]
        scale = float(lengths[1] / lengths[0]) if lengths[0] > 1e-12 else 0.0  # no motion at all misses the whole step
    return PoseError(float("nan") if rank == 0 else translation_rms(estimate_F44, truth_F44, scale), rot, rank, scale)


def translation_rms(estimate_F44: np.ndarray, truth_F44: np.ndarray, scale: float) -> float:
    """Return the RMS of |trans(E_i)|. A global rotation and translation of the estimate cancel in it; its scale does not."""
    ours, theirs = _steps(estimate_F44), _steps(truth_F44)
    return _rms(np.linalg.norm(scale * ours[:, :3, 3] - theirs[:, :3, 3], axis=1))


def _steps(pose_F44: np.ndarray) -> np.ndarray:
    return np.linalg.inv(pose_F44[:-1]) @ pose_F44[1:]


def _rms(values: Sequence[float] | np.ndarray) -> float:
    return float(np.sqrt((np.asarray(values, float) ** 2).mean()))
