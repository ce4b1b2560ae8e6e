"""The embedded estimator, on a CPU: tracks, motion model, structure from motion, checks; one focal length for a source.

It has two passes. The first decodes every clip once and keeps only its tracks. In the second, clips that turn find the focal
length on their own, and the median of their results is the source's. The other clips cannot tell a focal length from a depth,
so they are solved with that median.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from curation.cameras import rotation
from curation.cameras.camera import Camera, CameraFacts
from curation.cameras.checks import apply_checks, missed_focal_checks
from curation.cameras.klt import epipolar, focal, mapping, motion_model
from curation.cameras.klt.agreement import UNKNOWN, agreeing_maps
from curation.cameras.klt.clip_tracks import DEFAULT_FOCAL, TURN_S, ClipTracks, track_clip
from curation.cameras.klt.scale_links import scale_links
from curation.cameras.klt.vertical_runs import vertical_run_s
from curation.cameras.path_smoothness import step_ratio, velocity_spike
from curation.cameras.settings import CameraSettings, CheckSettings
from curation.errors import UnreadableVideo
from curation.media.source import probe

if TYPE_CHECKING:
    from curation.cameras.clip import ClipView

_ROTATION_GAPS_S = (0.0, 0.15, 0.45, 1.0)
_SAME_FOCAL = 0.01  # a clip whose focal length is this close to the pooled one keeps its own


class Solution(NamedTuple):
    """A clip's trajectory and the facts behind it.

    pose f8 [N, 4, 4] camera-to-world; focal: px of the tracking view; residual_px f8 [N]; valid bool [N]; keyframes int [K].
    """

    pose: np.ndarray
    focal: float
    residual_px: np.ndarray
    valid: np.ndarray
    keyframes: np.ndarray
    facts: CameraFacts


_Solver = Callable[[ClipTracks, float, bool], Solution]


def annotate(clips: Sequence["ClipView"], settings: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    """Estimate the cameras of one source's clips: see `annotate.annotate`."""
    return solve_clips([track_clip(clip, settings) for clip in clips], [_hint(clip, settings) for clip in clips], settings)


def solve_clips(
    clips: Sequence[ClipTracks | CameraFacts], hints: Sequence[float | None], settings: CameraSettings
) -> list[tuple[CameraFacts, Camera | None]]:
    """Run the second pass, on what was kept of each clip. hints: given focal lengths, as shares of the width."""
    solutions: dict[int, Solution] = {}
    shares: dict[int, float] = {}
    for k in _clips_that_turn(clips, hints, settings):
        clip = clips[k]
        assert isinstance(clip, ClipTracks), "only clips with tracks turn"
        pool = focal.pool_focals(list(shares.values()), settings.checks.max_focal_disagreement)
        solutions[k] = solve_clip(clip, pool, "clip", settings)
        if solutions[k].facts.ok:
            shares[k] = solutions[k].focal / clip.view.size[0]
    pool = focal.pool_focals(list(shares.values()), settings.checks.max_focal_disagreement)
    return [_finish_clip(clip, hints[k], pool, solutions.get(k), settings) for k, clip in enumerate(clips)]


def _clips_that_turn(
    clips: Sequence[ClipTracks | CameraFacts], hints: Sequence[float | None], settings: CameraSettings
) -> list[int]:
    """Return the clips that may find the focal length on their own, those that turn most first."""
    rotation_deg = {
        k: clip.rotation_deg
        for k, clip in enumerate(clips)
        if isinstance(clip, ClipTracks) and hints[k] is None and clip.model in ("rotation", "general")
    }
    turning = (k for k in rotation_deg if rotation_deg[k] >= settings.checks.min_focal_turn_deg)
    return sorted(turning, key=lambda k: -rotation_deg[k])


def _hint(clip: "ClipView", settings: CameraSettings) -> float | None:
    """Return the focal length that follows from the given field of view, as a share of the source's width."""
    if settings.fov_deg is None:
        return None
    try:
        width = probe(clip.uri).width
    except UnreadableVideo:
        return None
    return clip.viewport.w / 2 / math.tan(math.radians(settings.fov_deg) / 2) / width


def _finish_clip(
    clip: ClipTracks | CameraFacts,
    hint: float | None,
    pool: float | None,
    solution: Solution | None,
    settings: CameraSettings,
) -> tuple[CameraFacts, Camera | None]:
    if isinstance(clip, CameraFacts):
        return clip, None
    width = clip.view.size[0]
    if hint is not None:
        solution = solve_clip(clip, hint, "hint", settings)
    elif pool is not None and not (solution and _confirms_pool(solution, pool * width, settings.checks)):
        solution = solve_clip(clip, pool, "pooled", settings)
    elif solution is None:
        solution = solve_clip(clip, None, "none", settings)
    return solution.facts, None if solution.facts.status.startswith("failed") else _to_camera(clip, solution)


def _confirms_pool(solution: Solution, pool_px: float, limits: CheckSettings) -> bool:
    """Whether a clip observed its focal length, and the same as the others. The pooled one would then change nothing."""
    return not missed_focal_checks(solution.facts, limits) and abs(solution.focal / pool_px - 1) <= _SAME_FOCAL


def solve_clip(clip: ClipTracks, share: float | None, source: str, settings: CameraSettings) -> Solution:
    """Estimate the trajectory of a clip.

    share: the focal length as a share of the width, None where nothing is known. With the source "clip" the search starts from
    it; with "hint" and "pooled" it is fixed.
    """
    width = clip.view.size[0]
    start = share * width if share is not None else clip.motion.focal_px
    fixed = source in ("hint", "pooled")
    focal_source = source if fixed or source == "clip" else "none"
    general: _Solver = partial(_solve_general, limits=settings.checks)
    solve = {"static": _solve_static, "rotation": _solve_rotation, "general": general}[clip.model or "general"]
    start = start if math.isfinite(start) else DEFAULT_FOCAL * width
    try:
        solution = solve(clip, start, fixed)
    except (np.linalg.LinAlgError, cv2.error) as error:
        solution = _no_solution(clip, start, f"no solution: {error}")
    facts = solution.facts._replace(
        focal_px=solution.focal * clip.scale[0],
        focal_share=solution.focal / clip.view.rect.w,
        focal_source=focal_source,
    )
    facts = _with_motion(facts, clip, solution.pose)
    if focal_source == "clip" and (facts.turn_deg or 0) < settings.checks.min_focal_turn_deg:
        facts = facts._replace(focal_source="none")
    return solution._replace(facts=apply_checks(facts, settings.checks))


def _with_motion(facts: CameraFacts, clip: ClipTracks, pose: np.ndarray) -> CameraFacts:
    """Add how far the view turns, in total and at most from frame to frame, and how smooth the path is."""
    gap = motion_model.frame_gaps(clip.tracks.times_s, [TURN_S])[0]
    coarse, fine = (rotation.angle_deg(pose[:-g:g, :3, :3].transpose(0, 2, 1) @ pose[g::g, :3, :3]) for g in (gap, 1))
    return facts._replace(
        turn_deg=float(coarse.sum()),
        max_turn_deg=float(fine.max()),
        step_ratio=step_ratio(pose),
        velocity_spike=velocity_spike(pose, clip.tracks.times_s),
    )


def _solve_static(clip: ClipTracks, start: float, _: bool) -> Solution:
    count = len(clip.tracks.times_s)
    pose = np.tile(np.eye(4), (count, 1, 1))
    unknown = np.full(count, np.nan)
    return Solution(pose, start, unknown, np.ones(count, bool), np.array([0]), clip.facts)


def _solve_rotation(clip: ClipTracks, start: float, focal_fixed: bool) -> Solution:
    points, times_s = clip.points(), clip.tracks.times_s
    gaps = motion_model.frame_gaps(times_s, _ROTATION_GAPS_S)
    pairs = rotation.frame_pairs(points, gaps, 1)
    pair_rotations, _ = rotation.pair_rotations(pairs, start)
    chained = rotation.chain_rotations(pairs, pair_rotations, len(times_s))
    joint = rotation.refine_rotations(pairs, chained, start, focal_fixed)
    pose = np.tile(np.eye(4), (len(times_s), 1, 1))
    pose[:, :3, :3] = joint.pose
    pair_residual = np.nanmedian(joint.residual, 1) / clip.unit_px
    residual = np.full(len(times_s), np.nan)
    residual[pairs.second] = pair_residual  # the shortest gap is written first, so the value of the longest stays
    registered = np.isin(np.arange(len(times_s)), pairs.second)
    registered[0] = True
    facts = clip.facts._replace(
        focal_error=joint.focal_error,
        registered=float(registered.mean()),
        residual_px=float(np.median(pair_residual)),
        residual_p95_px=float(np.percentile(pair_residual, 95)),
    )
    return Solution(pose, joint.focal_px, residual, registered, np.array([0]), facts)


def _no_solution(clip: ClipTracks, start: float, why: str) -> Solution:
    count = len(clip.tracks.times_s)
    facts = clip.facts._replace(status=f"failed:{why}", registered=0.0)
    unknown, invalid = np.full(count, np.nan), np.zeros(count, bool)
    return Solution(np.tile(np.eye(4), (count, 1, 1)), start, unknown, invalid, np.array([0]), facts)


def _solve_general(clip: ClipTracks, start: float, focal_fixed: bool, limits: CheckSettings) -> Solution:
    points, times_s = clip.points(), clip.tracks.times_s
    candidates = agreeing_maps(points, times_s, start, focal_fixed, limits)
    if not candidates:
        return _no_solution(clip, start, "no parallax to start a map from, and no pure rotation")
    disagreement = min((candidates[0].disagreement(other) for other in candidates[1:]), default=UNKNOWN)
    best, poses, _ = candidates[0]
    residual, visible = poses.residual_px / clip.unit_px, np.isfinite(points[:, best.track, 0])
    non_sky = clip.centred(clip.non_sky_tracks)
    facts = clip.facts._replace(
        focal_error=best.focal_error,
        registered=best.registered,
        points=len(best.track),
        inliers_min=int(poses.inliers.min()),
        inlier_share=float(poses.share.min()),
        residual_px=float(np.nanmedian(residual)),
        residual_p95_px=float(np.nanpercentile(residual, 95)),
        scale_links=scale_links(visible, best.point, poses.pose),
        vertical_run_s=vertical_run_s(visible, best.point, poses.pose, times_s),
        outlier_coverage=epipolar.outlier_coverage(non_sky, poses.pose, best.focal_px, times_s, clip.view.rect.w),
        map_disagreement=disagreement.path,
        map_disagreement_deg=disagreement.rotation_deg,
    )
    return Solution(poses.pose, best.focal_px, residual, poses.inliers >= mapping.MIN_INLIERS, best.frames, facts)


def _to_camera(clip: ClipTracks, solution: Solution) -> Camera:
    (across, down), rect, size, viewport = clip.scale, clip.view.rect, clip.view.size, clip.clip.viewport
    middle = (rect.x + rect.w / 2) * across, (rect.y + rect.h / 2) * down
    intrinsics = np.tile([solution.focal * across, solution.focal * down, *middle], (len(solution.pose), 1))
    return Camera(
        pose=np.linalg.inv(solution.pose[0]) @ solution.pose,
        intrinsics=intrinsics,
        times_s=clip.tracks.times_s,
        size=(round(size[0] * across), round(size[1] * down)),
        viewport=(viewport.x, viewport.y, viewport.w, viewport.h),
        valid=solution.valid,
        residual_px=solution.residual_px.astype(np.float32),
        keyframes=solution.keyframes,
    )
