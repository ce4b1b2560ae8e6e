"""How far two trajectories of the same frames are apart, whatever the world, the scale and the first pose that each has."""

from typing import NamedTuple

import numpy as np

from curation.cameras.rotation import angle_deg


class Apart(NamedTuple):
    """path: RMS distance after the best similarity, as a share of the second one's path. turn_deg: RMS difference of the
    rotations from frame to frame.
    """

    path: float
    turn_deg: float

    @classmethod
    def of(cls, pose: np.ndarray, other: np.ndarray) -> "Apart":
        """Of camera-to-world poses [N, 4, 4]."""
        a, b = pose[:, :3, 3], other[:, :3, 3]
        length = float(np.linalg.norm(np.diff(b, axis=0), axis=1).sum())
        if not length or not np.ptp(a, axis=0).max():
            return UNKNOWN
        scale, turn, shift = umeyama(a, b)
        off = np.linalg.norm(scale * a @ turn.T + shift - b, axis=1)
        return cls(float(np.sqrt((off**2).mean())) / length, turned_apart_deg(pose, other))


UNKNOWN = Apart(1.0, 180.0)  # as far as can be: where one does not move, or there is no other


def turned_apart_deg(pose: np.ndarray, other: np.ndarray) -> float:
    """RMS difference of the rotations from frame to frame of poses [N, 4, 4], in degrees."""
    one, two = (p[:-1, :3, :3].transpose(0, 2, 1) @ p[1:, :3, :3] for p in (pose, other))
    return float(np.sqrt((angle_deg(two.transpose(0, 2, 1) @ one) ** 2).mean()))


def umeyama(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale s, rotation R, shift t of the similarity that brings points x [N, 3] closest to y: s R x + t (Umeyama 1991)."""
    middle_x, middle_y = x.mean(0), y.mean(0)
    u, d, vt = np.linalg.svd((y - middle_y).T @ (x - middle_x) / len(x))
    sign = np.array([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = (u * sign) @ vt
    scale = float((d * sign).sum() / ((x - middle_x) ** 2).sum() * len(x))
    return scale, turn, middle_y - scale * turn @ middle_x
