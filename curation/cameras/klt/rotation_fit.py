"""Frames in which the view only turns: where they are, and the rotations and focal length that explain them all."""

from typing import NamedTuple

import numpy as np

from curation.cameras import rotation
from curation.cameras.klt import motion_model
from curation.cameras.klt.clip_tracks import ClipTracks
from curation.cameras.settings import CheckSettings

# Gaps of the frame pairs of a fit in seconds (0: one frame), and the frames between the first frames of such pairs in seconds.
_GAPS = ((0.0, 0.0), (0.15, 0.07), (0.45, 0.15), (1.0, 0.2), (2.0, 0.3))
_TURN_GAPS_S = (0.15, 0.45)
_SHARE = 0.7  # of a pair's points that a rotation must explain: fewer lie on a hand or a cloud
_LONG_SHARE = 0.6  # likewise of a pair of the longest gaps, over which a cloud drifts and a hand comes and goes
_LONG_S = 0.9
_WORST = 0.9  # quantile of the pairs
_MIN_FRAMES = 5


class RotationFit(NamedTuple):
    """The rotations of a clip that only turns.

    pose f8 [N, 4, 4] camera-to-world; focal_px, focal_error as in `rotation.JointRotations`. residual_px f8 [N]: median over a
    frame's points, in px of a picture 640 wide. registered: share of frames that are in a pair. median_px: median over the
    pairs. worst_px: what seven of ten points (six over the longest gaps) leave in the worst tenth of the pairs of any gap.
    worst_frame: the middle of the pair that leaves most. A clip that stands still has no residuals.
    """

    pose: np.ndarray
    focal_px: float
    focal_error: float
    residual_px: np.ndarray
    registered: float
    median_px: float
    worst_px: float
    worst_frame: int
    is_static: bool


def turning_frames(clip: ClipTracks, focal: float, limits: CheckSettings) -> np.ndarray:
    """Return flags [N] of the frames around which a rotation explains the motion of the tracks, over short and longer gaps.

    focal: px of the tracking view.
    """
    points, times_s = clip.points(), clip.tracks.times_s
    limit_px = limits.max_rotation_residual_px * clip.unit_px
    flags = np.ones(len(times_s), bool)
    for number, gap in enumerate(motion_model.frame_gaps(times_s, _TURN_GAPS_S)):
        # From the last frame backwards, so that the last one is in a pair too.
        skipped = (len(points) - 1 - gap) % 2
        pairs = rotation.frame_pairs(points[skipped:], [gap], 2)
        covered, moves = (
            np.zeros(len(times_s), bool),
            np.zeros(len(times_s), bool),
        )  # by a pair that a rotation explains, or not
        if len(pairs.first):
            residual = np.nanquantile(rotation.pair_rotations(pairs, focal)[1], _SHARE, 1)
            for i, left_px in zip(pairs.first + skipped, residual, strict=True):
                (covered if left_px < limit_px else moves)[i : i + gap + 1] = True
        covered[:skipped], moves[:skipped] = covered[skipped], moves[skipped]
        # A short pair that moves shows when; a longer one only that something moved in it, and in a fast turn there is none.
        flags &= covered & ~moves if number == 0 else covered | ~moves
    return flags


def fit_rotations(clip: ClipTracks, focal: float, focal_fixed: bool, max_static_px: float) -> RotationFit | None:
    """Return the rotations of all frames of a clip; None where too few frames share tracks, or nothing fits.

    A clip whose points move less than max_static_px, px of a picture 640 wide, stands still.
    """
    points, times_s = clip.points(), clip.tracks.times_s
    count, frame_s = len(times_s), float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1.0
    if count < _MIN_FRAMES:
        return None
    displaced = motion_model.displacement(points, [*motion_model.frame_gaps(times_s, (0.15, 0.9)), count - 1])
    if displaced / clip.unit_px < max_static_px:
        still = np.tile(np.eye(4), (count, 1, 1))
        return RotationFit(still, focal, 0.0, np.full(count, np.nan), 1.0, 0.0, 0.0, 0, True)
    parts = [
        rotation.frame_pairs(points, motion_model.frame_gaps(times_s, [gap_s]), max(1, round(every_s / frame_s)))
        for gap_s, every_s in _GAPS
        if gap_s < times_s[-1]
    ]
    pairs = rotation.FramePairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if not len(pairs.first):
        return None
    pair_rotations, _ = rotation.pair_rotations(pairs, focal)
    chained = rotation.chain_rotations(pairs, pair_rotations, count)
    try:
        joint = rotation.refine_rotations(pairs, chained, focal, focal_fixed)
    except np.linalg.LinAlgError:
        return None
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[:, :3, :3] = joint.pose
    residual = joint.residual / clip.unit_px
    per_pair, per_frame = np.nanmedian(residual, 1), np.full(count, np.nan)
    per_frame[pairs.second] = per_pair
    per_frame[0] = per_frame[1]
    worst_px, worst_frame = _worst(residual, pairs, times_s)
    return RotationFit(
        pose=pose,
        focal_px=joint.focal_px,
        focal_error=joint.focal_error,
        residual_px=per_frame,
        registered=float((np.isin(np.arange(count), pairs.second) | (np.arange(count) == 0)).mean()),
        median_px=float(np.median(per_pair)),
        worst_px=worst_px,
        worst_frame=worst_frame,
        is_static=False,
    )


def _worst(residual_PK: np.ndarray, pairs: rotation.FramePairs, times_s: np.ndarray) -> tuple[float, int]:
    """Return the residual of the worst tenth of the pairs, for the gap that is worst, and the middle of the very worst pair."""
    gap_s = times_s[pairs.second] - times_s[pairs.first]
    per_pair = np.where(gap_s > _LONG_S, np.nanquantile(residual_PK, _LONG_SHARE, 1), np.nanquantile(residual_PK, _SHARE, 1))
    gaps = pairs.second - pairs.first
    worst_px = max(float(np.quantile(per_pair[gaps == gap], _WORST)) for gap in np.unique(gaps))
    worst = int(per_pair.argmax())
    return worst_px, int(pairs.first[worst] + pairs.second[worst]) // 2
