"""Errors of a trajectory against the truth: ATE, RPE-trans, RPE-rot as evo computes them after Sim3 alignment (Umeyama 1991).

Where the truth's path is shorter than `LEAST_PATH` (pure rotation, static) no similarity can be fitted: there ATE and RPE-trans
are not defined, and the rotation error after the best single rotation takes their place.
"""

from typing import NamedTuple

import numpy as np

from curation.cameras.klt.agreement import turned_apart_deg, umeyama
from curation.cameras.rotation import angle_deg

LEAST_PATH = 8.0  # map units, a quarter of a metre: what a player's view bobs and settles by


class Errors(NamedTuple):
    """ate, rpe_trans: share of the path and of the RMS step. rpe_rot_deg: RMS over frames. absolute_deg: mean rotation error
    after one rotation for the whole clip. scale: from the estimate's unit to the truth's. NaN where not defined.
    """

    ate: float
    rpe_trans: float
    rpe_rot_deg: float
    absolute_deg: float
    scale: float


def errors(estimate: np.ndarray, truth: np.ndarray) -> Errors:
    """Camera-to-world poses [N, 4, 4] of the same frames."""
    path = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum())
    step, true_step = (np.linalg.inv(pose[:-1]) @ pose[1:] for pose in (estimate, truth))
    rotation, absolute = turned_apart_deg(estimate, truth), _absolute_deg(estimate, truth)
    moved = np.ptp(estimate[:, :3, 3], axis=0).max()
    if path < LEAST_PATH or moved < 1e-9:
        return Errors(np.nan if path < LEAST_PATH else 1.0, np.nan, rotation, absolute, np.nan)
    scale, turn, shift = umeyama(estimate[:, :3, 3], truth[:, :3, 3])
    gone = np.linalg.norm(scale * estimate[:, :3, 3] @ turn.T + shift - truth[:, :3, 3], axis=1)
    slipped = np.linalg.norm(scale * step[:, :3, 3] - true_step[:, :3, 3], axis=1)
    size = np.sqrt((np.linalg.norm(true_step[:, :3, 3], axis=1) ** 2).mean())
    return Errors(_rms(gone) / path, _rms(slipped) / float(size), rotation, absolute, scale)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _absolute_deg(estimate: np.ndarray, truth: np.ndarray) -> float:
    u, _, vt = np.linalg.svd((truth[:, :3, :3] @ estimate[:, :3, :3].transpose(0, 2, 1)).sum(0))
    turn = (u * [1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return float(angle_deg(truth[:, :3, :3].transpose(0, 2, 1) @ turn @ estimate[:, :3, :3]).mean())
