"""The embedded estimator, on a CPU: tracks, the kind of motion, structure from motion, checks; one focal length a source.

Two passes. Every clip is decoded once and only its tracks are kept. Clips that turn find the focal length on their own, and the
median of what they say is the source's; the others, none of which can tell a focal length from a depth, are solved with that.
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
from curation.cameras.klt.agreement import UNKNOWN, agreed
from curation.cameras.klt.clip_tracks import GUESS, TURN_S, Look, looked_at
from curation.cameras.klt.scale_links import scale_links
from curation.cameras.klt.vertical_runs import vertical_run_s
from curation.cameras.path_smoothness import step_ratio, velocity_spike
from curation.cameras.settings import CameraSettings, CheckSettings
from curation.errors import UnreadableVideo
from curation.media import decode

if TYPE_CHECKING:
    from curation.cameras.clip import ClipView

_ROTATION_GAPS_S = (0.0, 0.15, 0.45, 1.0)
_SAME_FOCAL = 0.01  # a clip that comes so near to the pool keeps its own


class Solved(NamedTuple):
    """pose f8 [N, 4, 4] camera-to-world; focal px watched; residual_px f8 [N], valid bool [N], keyframes int [K]; facts."""

    pose: np.ndarray
    focal: float
    residual_px: np.ndarray
    valid: np.ndarray
    keyframes: np.ndarray
    facts: CameraFacts


_Solve = Callable[[Look, float, bool], Solved]


def annotate(clips: Sequence["ClipView"], how: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    """See `annotate.annotate`."""
    return annotated([looked_at(clip, how) for clip in clips], [_hint(clip, how) for clip in clips], how)


def annotated(
    looks: Sequence[Look | CameraFacts], hints: Sequence[float | None], how: CameraSettings
) -> list[tuple[CameraFacts, Camera | None]]:
    """The second pass, on what was kept of each clip. hints: focal lengths that were told, as shares of the width."""
    found: dict[int, Solved] = {}
    shares: dict[int, float] = {}
    for k in _turning(looks, hints, how):
        look = looks[k]
        assert isinstance(look, Look), "only what was looked at turns"
        found[k] = solved(look, focal.pooled(list(shares.values()), how.checks.max_focal_disagreement), "clip", how)
        if found[k].facts.ok:
            shares[k] = found[k].focal / look.watched.size[0]
    pool = focal.pooled(list(shares.values()), how.checks.max_focal_disagreement)
    return [_annotated(look, hints[k], pool, found.get(k), how) for k, look in enumerate(looks)]


def _turning(looks: Sequence[Look | CameraFacts], hints: Sequence[float | None], how: CameraSettings) -> list[int]:
    """Clips that may find the focal length on their own, those that turn most first."""
    turned = {
        k: look.turned_deg
        for k, look in enumerate(looks)
        if isinstance(look, Look) and hints[k] is None and look.model in ("rotation", "general")
    }
    return sorted((k for k in turned if turned[k] >= how.checks.min_focal_turn_deg), key=lambda k: -turned[k])


def _hint(clip: "ClipView", how: CameraSettings) -> float | None:
    """The focal length that a field of view of the 3-D view means, as a share of the source's width."""
    if how.fov_deg is None:
        return None
    try:
        width = decode.probe(clip.uri).width
    except UnreadableVideo:
        return None
    return clip.viewport.w / 2 / math.tan(math.radians(how.fov_deg) / 2) / width


def _annotated(
    look: Look | CameraFacts, hint: float | None, pool: float | None, found: Solved | None, how: CameraSettings
) -> tuple[CameraFacts, Camera | None]:
    if isinstance(look, CameraFacts):
        return look, None
    width = look.watched.size[0]
    if hint is not None:
        found = solved(look, hint, "hint", how)
    elif pool is not None and not (found and _stands(found, pool * width, how.checks)):
        found = solved(look, pool, "pooled", how)
    elif found is None:
        found = solved(look, None, "none", how)
    return found.facts, None if found.facts.status.startswith("failed") else _camera(look, found)


def _stands(found: Solved, pool_px: float, limits: CheckSettings) -> bool:
    """Whether a clip saw its focal length, and as the others did; if so, the pool's would change nothing."""
    return not missed_focal_checks(found.facts, limits) and abs(found.focal / pool_px - 1) <= _SAME_FOCAL


def solved(look: Look, share: float | None, source: str, how: CameraSettings) -> Solved:
    """The trajectory of a clip. share: of the width, the focal length that is held, or where the search begins if the source of
    it is to be the clip; None: nothing is known.
    """
    width = look.watched.size[0]
    start = share * width if share is not None else look.motion.focal_px
    held = source in ("hint", "pooled")
    known = source if held or source == "clip" else "none"
    general: _Solve = partial(_general, limits=how.checks)
    solve = {"static": _static, "rotation": _rotation, "general": general}[look.model or "general"]
    start = start if math.isfinite(start) else GUESS * width
    try:
        found = solve(look, start, held)
    except (np.linalg.LinAlgError, cv2.error) as error:
        found = _unsolved(look, start, f"no solution: {error}")
    facts = found.facts._replace(
        focal_px=found.focal * look.scale[0],
        focal_share=found.focal / look.watched.view.w,
        focal_source=known,
    )
    facts = _moved(facts, look, found.pose)
    if known == "clip" and (facts.turn_deg or 0) < how.checks.min_focal_turn_deg:
        facts = facts._replace(focal_source="none")
    return found._replace(facts=apply_checks(facts, how.checks))


def _moved(facts: CameraFacts, look: Look, pose: np.ndarray) -> CameraFacts:
    """How far the view turns in all and at most from frame to frame, and how smooth the path is."""
    gap = motion_model.frame_gaps(look.tracks.times_s, [TURN_S])[0]
    coarse, fine = (rotation.angle_deg(pose[:-g:g, :3, :3].transpose(0, 2, 1) @ pose[g::g, :3, :3]) for g in (gap, 1))
    return facts._replace(
        turn_deg=float(coarse.sum()),
        max_turn_deg=float(fine.max()),
        step_ratio=step_ratio(pose),
        velocity_spike=velocity_spike(pose, look.tracks.times_s),
    )


def _static(look: Look, start: float, _: bool) -> Solved:
    count = len(look.tracks.times_s)
    pose = np.tile(np.eye(4), (count, 1, 1))
    unseen = np.full(count, np.nan)
    return Solved(pose, start, unseen, np.ones(count, bool), np.array([0]), look.facts)


def _rotation(look: Look, start: float, held: bool) -> Solved:
    points, times_s = look.points(), look.tracks.times_s
    gaps = motion_model.frame_gaps(times_s, _ROTATION_GAPS_S)
    found = rotation.pairs(points, gaps, 1)
    turn, _ = rotation.turns(found, start)
    refined = rotation.refine(found, rotation.chained(found, turn, len(times_s)), start, held)
    pose = np.tile(np.eye(4), (len(times_s), 1, 1))
    pose[:, :3, :3] = refined.pose
    each = np.nanmedian(refined.left, 1) / look.unit
    residual = np.full(len(times_s), np.nan)
    residual[found.second] = each  # the shortest gap comes first, the longest stays
    told = np.isin(np.arange(len(times_s)), found.second)
    told[0] = True
    facts = look.facts._replace(
        focal_error=refined.focal_error,
        registered=float(told.mean()),
        residual_px=float(np.median(each)),
        residual_p95_px=float(np.percentile(each, 95)),
    )
    return Solved(pose, refined.focal_px, residual, told, np.array([0]), facts)


def _unsolved(look: Look, start: float, why: str) -> Solved:
    count = len(look.tracks.times_s)
    facts = look.facts._replace(status=f"failed:{why}", registered=0.0)
    return Solved(np.tile(np.eye(4), (count, 1, 1)), start, np.full(count, np.nan), np.zeros(count, bool), np.array([0]), facts)


def _general(look: Look, start: float, held: bool, limits: CheckSettings) -> Solved:
    points, times_s = look.points(), look.tracks.times_s
    maps = agreed(points, times_s, start, held, limits)
    if not maps:
        return _unsolved(look, start, "neither parallax to begin a map nor a pure rotation")
    apart = min((maps[0].apart(other) for other in maps[1:]), default=UNKNOWN)
    found, filled, _ = maps[0]
    residual, seen = filled.residual_px / look.unit, np.isfinite(points[:, found.track, 0])
    below_sky = look.centred(look.below_sky)
    facts = look.facts._replace(
        focal_error=found.focal_error,
        registered=found.reached,
        points=len(found.track),
        inliers_min=int(filled.inliers.min()),
        inlier_share=float(filled.share.min()),
        residual_px=float(np.nanmedian(residual)),
        residual_p95_px=float(np.nanpercentile(residual, 95)),
        scale_links=scale_links(seen, found.point, filled.pose),
        vertical_run_s=vertical_run_s(seen, found.point, filled.pose, times_s),
        outlier_coverage=epipolar.outlier_coverage(below_sky, filled.pose, found.focal_px, times_s, look.watched.view.w),
        map_disagreement=apart.path,
        map_disagreement_deg=apart.turn_deg,
    )
    return Solved(filled.pose, found.focal_px, residual, filled.inliers >= mapping.LEAST_INLIERS, found.frames, facts)


def _camera(look: Look, found: Solved) -> Camera:
    (across, down), view, size, port = look.scale, look.watched.view, look.watched.size, look.clip.viewport
    middle = (view.x + view.w / 2) * across, (view.y + view.h / 2) * down
    intrinsics = np.tile([found.focal * across, found.focal * down, *middle], (len(found.pose), 1))
    return Camera(
        pose=np.linalg.inv(found.pose[0]) @ found.pose,
        intrinsics=intrinsics,
        times_s=look.tracks.times_s,
        size=(round(size[0] * across), round(size[1] * down)),
        viewport=(port.x, port.y, port.w, port.h),
        valid=found.valid,
        residual_px=found.residual_px.astype(np.float32),
        keyframes=found.keyframes,
    )
