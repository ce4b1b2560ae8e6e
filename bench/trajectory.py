"""Errors of a trajectory against the true one: ATE, RPE-trans and RPE-rot, as evo computes them after Sim3 alignment.

Where the true path is shorter than `MIN_PATH` (pure rotation, static) no similarity can be fitted. ATE and RPE-trans are not
defined there, and the rotation error after the best single rotation replaces them. The alignment is Umeyama's (1991).
"""

from typing import NamedTuple

import numpy as np

from curation.cameras.klt.agreement import rotation_difference_deg, umeyama
from curation.cameras.rotation import angle_deg

MIN_PATH = 8.0  # map units, a quarter of a metre: a player's view bobs and settles by as much


class Errors(NamedTuple):
    """Errors of a trajectory; NaN where they are not defined.

    ate, rpe_trans: shares of the path and of the RMS step. rpe_rot_deg: RMS over frames. absolute_deg: mean rotation error
    after one rotation for the whole clip. scale: from the estimate's unit to the true one.
    """

    ate: float
    rpe_trans: float
    rpe_rot_deg: float
    absolute_deg: float
    scale: float


def errors(estimate: np.ndarray, truth: np.ndarray) -> Errors:
    """Compare camera-to-world poses [N, 4, 4] with the true ones of the same frames."""
    path = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum())
    step, true_step = (np.linalg.inv(pose[:-1]) @ pose[1:] for pose in (estimate, truth))
    rpe_rot_deg, absolute_deg = rotation_difference_deg(estimate, truth), _absolute_deg(estimate, truth)
    moved = np.ptp(estimate[:, :3, 3], axis=0).max()
    if path < MIN_PATH or moved < 1e-9:
        return Errors(np.nan if path < MIN_PATH else 1.0, np.nan, rpe_rot_deg, absolute_deg, np.nan)
    scale, rotation, translation = umeyama(estimate[:, :3, 3], truth[:, :3, 3])
    position_error = np.linalg.norm(scale * estimate[:, :3, 3] @ rotation.T + translation - truth[:, :3, 3], axis=1)
    step_error = np.linalg.norm(scale * step[:, :3, 3] - true_step[:, :3, 3], axis=1)
    step_size = np.sqrt((np.linalg.norm(true_step[:, :3, 3], axis=1) ** 2).mean())
    return Errors(_rms(position_error) / path, _rms(step_error) / float(step_size), rpe_rot_deg, absolute_deg, scale)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _absolute_deg(estimate: np.ndarray, truth: np.ndarray) -> float:
    u, _, vt = np.linalg.svd((truth[:, :3, :3] @ estimate[:, :3, :3].transpose(0, 2, 1)).sum(0))
    rotation = (u * [1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return float(angle_deg(truth[:, :3, :3].transpose(0, 2, 1) @ rotation @ estimate[:, :3, :3]).mean())
