"""The embedded estimator, on a CPU: tracks, motion model, structure from motion, checks; one focal length for a source.

It has two passes. The first decodes every clip once and keeps only its tracks. In the second, clips that turn find the focal
length on their own, and the median of their results is the source's. The other clips cannot tell a focal length from a depth,
so they are solved with that median. A clip that fails as a whole is taken apart into the spans that pass (`spans`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from curation.cameras.camera import PART, Camera, CameraFacts, CameraSpan
from curation.cameras.checks import OK_BY_MODEL, apply_checks, missed_checks, missed_focal_checks
from curation.cameras.klt import epipolar, focal, mapping
from curation.cameras.klt.agreement import UNKNOWN, agreeing_maps
from curation.cameras.klt.clip_tracks import DEFAULT_FOCAL, ClipTracks, track_clip
from curation.cameras.klt.measures import parallax, turn_facts, with_motion
from curation.cameras.klt.rotation_fit import fit_rotations, turning_frames
from curation.cameras.klt.scale_links import scale_links
from curation.cameras.klt.spans import Piece, assemble, find_pieces, merge, runs_of
from curation.cameras.klt.vertical_runs import vertical_run_s
from curation.cameras.settings import CameraSettings, CheckSettings
from curation.errors import UnreadableVideo
from curation.media.source import probe

if TYPE_CHECKING:
    from curation.cameras.clip import ClipView

_SURE_CLIPS = 3  # that show the same focal length: no other clip is then needed to find it
_NO_SPAN = "frames that no map and no rotation explains"
_SUSPECT_MAPS = 2  # of a clip in which no span passes
_SAME_FOCAL = 0.01  # a clip whose focal length is this close to the pooled one keeps its own


class Solution(NamedTuple):
    """A clip's trajectory and the facts behind it.

    pose f8 [N, 4, 4] camera-to-world; focal: px of the tracking view; residual_px f8 [N]; valid bool [N]; keyframes int [K].
    spans: the frames that passed every check.
    """

    pose: np.ndarray
    focal: float
    residual_px: np.ndarray
    valid: np.ndarray
    keyframes: np.ndarray
    facts: CameraFacts
    spans: tuple[CameraSpan, ...] = ()


_Solver = Callable[[ClipTracks, float, bool], Solution]


def annotate(clips: Sequence["ClipView"], settings: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    """Estimate the cameras of one source's clips: see `annotate.annotate`."""
    return solve_clips([track_clip(clip, settings) for clip in clips], [_hint(clip, settings) for clip in clips], settings)


def solve_clips(
    clips: Sequence[ClipTracks | CameraFacts], hints: Sequence[float | None], settings: CameraSettings
) -> list[tuple[CameraFacts, Camera | None]]:
    """Run the second pass, on what was kept of each clip. hints: given focal lengths, as shares of the width."""
    turning = _clips_that_turn(clips, hints, settings)
    shares = {k: share for k, clip in turning.items() if (share := _turn_share(clip, settings.checks)) is not None}
    solutions: dict[int, Solution] = {}
    for k, clip in turning.items():
        if k in shares or clip.breaks:
            continue
        if _are_sure(shares):
            break
        solutions[k] = solve_clip(clip, _pool(shares, settings), "clip", settings)
        if _shows_focal(solutions[k].facts, settings.checks):
            shares[k] = solutions[k].focal / clip.view.size[0]
    pool = _pool(shares, settings)
    return [_finish_clip(clip, hints[k], pool, solutions.get(k), settings) for k, clip in enumerate(clips)]


def _are_sure(shares: dict[int, float]) -> bool:
    """Whether enough clips show the same focal length."""
    values = np.array(list(shares.values()))
    return len(values) >= _SURE_CLIPS and bool((np.abs(values / np.median(values) - 1) <= _SAME_FOCAL).sum() >= _SURE_CLIPS)


def _pool(shares: dict[int, float], settings: CameraSettings) -> float | None:
    return focal.pool_focals(list(shares.values()), settings.checks.max_focal_disagreement)


def _shows_focal(facts: CameraFacts, limits: CheckSettings) -> bool:
    """Whether a clip shows the focal length by its path: it passes every check, and does not hardly move.

    Too few scale links do not count: a scale that drifts does not change the focal length.
    """
    passes = apply_checks(facts, replace(limits, min_scale_links=0)).ok
    return passes and (facts.model == "rotation" or (facts.parallax or 0.0) >= limits.min_focal_parallax)


def _turn_share(clip: ClipTracks, limits: CheckSettings) -> float | None:
    """Return the focal length, as a share of the width, by which a clip's longest turn on the spot fits best.

    None where there is no turn, or it does not show the focal length for certain.
    """
    first, end = _longest_turn(clip, clip.motion.focal_px, limits)
    part = clip.part(first, end)
    fit = fit_rotations(part, clip.motion.focal_px, False, limits.max_static_px) if end > first else None
    if fit is None or fit.is_static:
        return None
    facts = turn_facts(part, fit)._replace(focal_source="clip", focal_share=fit.focal_px / clip.view.rect.w)
    if (facts.turn_deg or 0.0) < limits.min_focal_turn_deg or missed_checks(facts, limits) + missed_focal_checks(facts, limits):
        return None
    return fit.focal_px / clip.view.size[0]


def _longest_turn(clip: ClipTracks, focal_px: float, limits: CheckSettings) -> tuple[int, int]:
    turns = runs_of(turning_frames(clip, focal_px, limits)) if math.isfinite(focal_px) else []
    return max(turns, key=lambda run: run[1] - run[0], default=(0, 0))


def _clips_that_turn(
    clips: Sequence[ClipTracks | CameraFacts], hints: Sequence[float | None], settings: CameraSettings
) -> dict[int, ClipTracks]:
    """Return the clips that may find the focal length on their own by number, those that turn most first."""
    turning = {
        k: clip
        for k, clip in enumerate(clips)
        if isinstance(clip, ClipTracks)
        and hints[k] is None
        and clip.model in ("rotation", "general")
        and clip.rotation_deg >= settings.checks.min_focal_turn_deg
    }
    return dict(sorted(turning.items(), key=lambda item: -item[1].rotation_deg))


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
    share, source = (hint, "hint") if hint is not None else (pool, "pooled")
    if share is None:
        return _finish(clip, _without_known_focal(clip, solution, settings))
    if clip.model in ("static", "rotation") and not clip.breaks:
        whole = solve_clip(clip, share, source, settings)
        if whole.facts.ok:
            return _finish(clip, whole)
    confirms = solution is not None and _confirms_pool(solution, share * width, settings.checks)
    if solution is not None and confirms and _is_one_span(solution, settings.checks):
        return _finish(clip, solution)
    has_spans = settings.checks.min_span_s <= float(np.ptp(clip.tracks.times_s))
    in_spans = _in_spans(clip, share * width, source, settings) if has_spans else None
    if in_spans is None and not confirms:
        max_maps = _SUSPECT_MAPS if has_spans else None
        solution = _broken(clip) if clip.breaks else solve_clip(clip, share, source, settings, max_maps)
    return _finish(clip, in_spans or solution or _broken(clip))


def _is_one_span(solution: Solution, limits: CheckSettings) -> bool:
    """Whether a clip passes as a whole, also the check on every frame of a span."""
    if not solution.facts.ok or solution.facts.model != "general":
        return solution.facts.ok
    return bool(np.nanmax(solution.residual_px) <= limits.max_frame_residual_px)


def _finish(clip: ClipTracks, solution: Solution) -> tuple[CameraFacts, Camera | None]:
    if solution.facts.ok and not solution.spans:
        count = len(solution.pose)
        span = CameraSpan(0, count, solution.facts.model or "general")
        facts = solution.facts._replace(valid_share=1.0)
        solution = solution._replace(valid=np.ones(count, bool), spans=(span,), facts=facts)
    return solution.facts, None if solution.facts.status.startswith("failed") else _to_camera(clip, solution)


def _without_known_focal(clip: ClipTracks, solution: Solution | None, settings: CameraSettings) -> Solution:
    """Return the solution of a clip of a source of which no clip shows the focal length. It is never ok."""
    if clip.breaks:
        return _broken(clip)
    solution = solution or solve_clip(clip, None, "none", settings)
    if not solution.facts.ok:
        return solution
    facts = solution.facts._replace(status="suspect", why="focal length not observable", focal_source="none")
    return solution._replace(facts=facts)


def _broken(clip: ClipTracks) -> Solution:
    return _no_solution(clip, clip.motion.focal_px, clip.facts.status.partition(":")[2])


def _in_spans(clip: ClipTracks, focal_px: float, source: str, settings: CameraSettings) -> Solution | None:
    """Return the spans of a clip, with the focal length that is taken as exact; None where there are none."""
    if (clip.facts.tracks or 0.0) < settings.checks.min_tracks:
        return None
    missed: list[str] = []
    pieces = merge(find_pieces(clip, focal_px, settings, missed))
    if not pieces:
        return None
    count = len(clip.tracks.times_s)
    pose, residual = assemble(pieces, count)
    valid = np.zeros(count, bool)
    for piece in pieces:
        valid[piece.start : piece.end] = piece.valid
    spans = tuple(CameraSpan(piece.start, piece.end, _model(piece), piece.group) for piece in pieces)
    longest = max(pieces, key=lambda piece: piece.frames)
    is_whole = longest.frames == count and bool(longest.valid.all())
    facts = with_motion(longest.facts, pose, clip.tracks.times_s)._replace(
        status=OK_BY_MODEL[_model(longest)] if is_whole else PART,
        why=None if is_whole else _why(missed, longest, count),
        model=_model(longest) if is_whole else clip.model,
        registered=float(valid.mean()),
        focal_px=focal_px * clip.scale[0],
        focal_share=focal_px / clip.view.rect.w,
        focal_source=source,
        focal_error=0.0,
        valid_share=float(valid.mean()),
    )
    return Solution(pose, focal_px, residual, valid, np.concatenate([piece.keyframes for piece in pieces]), facts, spans)


def _why(missed: Sequence[str], longest: Piece, count: int) -> str:
    """Return what kept a clip from passing as a whole."""
    if longest.frames == count:
        return f"{count - int(longest.valid.sum())} frames miss checks of single frames"
    return ", ".join({check.partition(" ")[0]: check for check in reversed(missed)}.values()) or _NO_SPAN


def _model(piece: Piece) -> str:
    """Return the model of a piece; that of one that was joined from several is general, as is that of any path."""
    return "general" if np.ptp(piece.pose[:, :3, 3], axis=0).any() else piece.model


def _confirms_pool(solution: Solution, pool_px: float, limits: CheckSettings) -> bool:
    """Whether a clip observed its focal length, and the same as the others. The pooled one would then change nothing."""
    return not missed_focal_checks(solution.facts, limits) and abs(solution.focal / pool_px - 1) <= _SAME_FOCAL


def solve_clip(
    clip: ClipTracks, share: float | None, source: str, settings: CameraSettings, max_maps: int | None = None
) -> Solution:
    """Estimate the trajectory of a clip.

    share: the focal length as a share of the width, None where nothing is known. With the source "clip" the search starts from
    it; with "hint" and "pooled" it is fixed. max_maps: to try, fewer where only the numbers of a wrong trajectory are wanted.
    """
    width = clip.view.size[0]
    start = share * width if share is not None else clip.motion.focal_px
    fixed = source in ("hint", "pooled")
    focal_source = source if fixed or source == "clip" else "none"
    general: _Solver = partial(_solve_general, limits=settings.checks, max_maps=max_maps)
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
    facts = with_motion(facts, solution.pose, clip.tracks.times_s)
    if focal_source == "clip" and (facts.turn_deg or 0) < settings.checks.min_focal_turn_deg:
        facts = facts._replace(focal_source="none")
    return solution._replace(facts=apply_checks(facts, settings.checks))


def _solve_static(clip: ClipTracks, start: float, _: bool) -> Solution:
    count = len(clip.tracks.times_s)
    pose = np.tile(np.eye(4), (count, 1, 1))
    unknown = np.full(count, np.nan)
    return Solution(pose, start, unknown, np.ones(count, bool), np.array([0]), clip.facts)


def _solve_rotation(clip: ClipTracks, start: float, focal_fixed: bool) -> Solution:
    fit = fit_rotations(clip, start, focal_fixed, 0.0)
    if fit is None:
        return _no_solution(clip, start, "no rotation fits")
    facts = turn_facts(clip, fit)._replace(model="rotation")
    valid = np.isfinite(fit.residual_px)
    return Solution(fit.pose, fit.focal_px, fit.residual_px, valid, np.array([0]), facts)


def _no_solution(clip: ClipTracks, start: float, why: str) -> Solution:
    count = len(clip.tracks.times_s)
    facts = clip.facts._replace(status=f"failed:{why}", registered=0.0)
    unknown, invalid = np.full(count, np.nan), np.zeros(count, bool)
    return Solution(np.tile(np.eye(4), (count, 1, 1)), start, unknown, invalid, np.array([0]), facts)


def _solve_general(clip: ClipTracks, start: float, focal_fixed: bool, limits: CheckSettings, max_maps: int | None) -> Solution:
    points, times_s = clip.points(), clip.tracks.times_s
    candidates = agreeing_maps(points, times_s, start, focal_fixed, limits, max_maps)
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
        parallax=parallax(visible, best.point, poses.pose),
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
        spans=solution.spans,
    )
