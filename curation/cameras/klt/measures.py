"""What is measured of a run of frames for its checks, and where in it a check is missed most."""

import numpy as np

from curation.cameras import rotation
from curation.cameras.camera import CameraFacts
from curation.cameras.klt import epipolar, motion_model
from curation.cameras.klt.agreement import Candidate, Disagreement, umeyama
from curation.cameras.klt.clip_tracks import TURN_S, ClipTracks
from curation.cameras.klt.rotation_fit import RotationFit
from curation.cameras.klt.scale_links import links_per_frame, scale_links
from curation.cameras.klt.vertical_runs import longest_vertical_run, vertical_run_s
from curation.cameras.path_smoothness import step_ratio, step_sizes, velocity_changes, velocity_spike

_NEAR = 0.2  # quantile of the points' distances that is the distance to the nearer part of the world
_EVERY = 4  # frames of a run between those whose distances are measured
_MIN_PART = 4  # frames on each side of a place where two maps may part


def measure_run(
    clip: ClipTracks, points: np.ndarray, one: Candidate, witness: Candidate, first: int, end: int, valid: np.ndarray
) -> CameraFacts:
    """Return the facts of the frames [first, end) of a map, with another map of the same clip as its witness.

    points f4 [N, M, 2]: the clip's tracks in px from the principal point. valid bool [N]: frames that inliers are counted in.
    """
    frames, counted = slice(first, end), first + np.flatnonzero(valid[first:end])
    pose, times_s = one.poses.pose[frames], clip.tracks.times_s[frames]
    visible = np.isfinite(points[frames, :, 0][:, one.map.track])
    residual = one.poses.residual_px[frames] / clip.unit_px
    disagreement = Disagreement.of(pose, witness.poses.pose[frames])
    non_sky = clip.centred(clip.non_sky_tracks.part(first, end))
    facts = clip.facts._replace(
        status="",
        model="general",
        focal_error=one.map.focal_error,
        registered=float(one.map.posed[frames].mean()),
        points=int((visible.sum(0) >= 2).sum()),
        inliers_min=int(one.poses.inliers[counted].min(initial=10**6)),
        inlier_share=float(one.poses.share[counted].min(initial=1.0)),
        residual_px=float(np.nanmedian(residual)) if np.isfinite(residual).any() else np.nan,
        residual_p95_px=float(np.nanpercentile(residual, 95)) if np.isfinite(residual).any() else np.nan,
        scale_links=scale_links(visible, one.map.point, pose),
        vertical_run_s=vertical_run_s(visible, one.map.point, pose, times_s),
        outlier_coverage=epipolar.outlier_coverage(non_sky, pose, one.map.focal_px, times_s, clip.view.rect.w),
        map_disagreement=disagreement.path,
        map_disagreement_deg=disagreement.rotation_deg,
        parallax=parallax(visible, one.map.point, pose),
    )
    return with_motion(facts, pose, times_s)


def with_motion(facts: CameraFacts, pose: np.ndarray, times_s: np.ndarray) -> CameraFacts:
    """Add how far the view turns, in total and at most from frame to frame, and how smooth the path is."""
    gap = motion_model.frame_gaps(times_s, [TURN_S])[0]
    coarse, fine = (rotation.angle_deg(pose[:-g:g, :3, :3].transpose(0, 2, 1) @ pose[g::g, :3, :3]) for g in (gap, 1))
    return facts._replace(
        turn_deg=float(coarse.sum()),
        max_turn_deg=float(fine.max(initial=0.0)),
        step_ratio=step_ratio(pose),
        velocity_spike=velocity_spike(pose, times_s),
    )


def turn_facts(clip: ClipTracks, fit: RotationFit) -> CameraFacts:
    """Return the facts of a clip that only turns, or stands still."""
    facts = clip.facts._replace(
        status="",
        model="static" if fit.is_static else "rotation",
        focal_error=fit.focal_error,
        registered=fit.registered,
        residual_px=fit.median_px,
        rotation_residual_px=fit.worst_px,
    )
    return with_motion(facts, fit.pose, clip.tracks.times_s)


def parallax(visible_NT: np.ndarray, point_T3: np.ndarray, pose_N44: np.ndarray) -> float:
    """Return how far a camera gets from its mean position, as a share of the distance to the nearer part of the world.

    A camera that only turns seems to move by a few hundredths of that distance where hands and clouds are mistaken for the
    world, or the focal length is wrong. visible bool [N, T]: which points each frame sees.
    """
    centre = pose_N44[:, :3, 3]
    distances = [
        np.quantile(np.linalg.norm(point_T3[seen] - at, axis=1), _NEAR)
        for at, seen in zip(centre[::_EVERY], visible_NT[::_EVERY], strict=True)
        if seen.any()
    ]
    if not distances:
        return 0.0
    return float(np.linalg.norm(centre - centre.mean(0), axis=1).max() / max(float(np.median(distances)), 1e-12))


def weakest_frames(
    clip: ClipTracks, points: np.ndarray, one: Candidate, witness: Candidate, first: int, end: int, check: str
) -> tuple[int, int] | None:
    """Return the frames [a, b) of a run in which a check is missed most; None where the check is about the run as a whole."""
    frames = slice(first, end)
    pose, times_s = one.poses.pose[frames], clip.tracks.times_s[frames]
    visible = np.isfinite(points[frames, :, 0][:, one.map.track])
    if check == "max_turn_deg":
        worst = int(_steps_deg(pose).argmax()) + 1
    elif check == "step_ratio":
        worst = int(step_sizes(pose).argmax()) + 1
    elif check == "velocity_spike":
        worst = int(velocity_changes(pose, times_s).argmax()) + 2
    elif check == "scale_links":
        worst = int(links_per_frame(visible, one.map.point, pose).argmin())
    elif check == "map_disagreement_deg":
        ours, theirs = _steps(pose), _steps(witness.poses.pose[frames])
        worst = int(rotation.angle_deg(theirs.transpose(0, 2, 1) @ ours).argmax()) + 1
    elif check == "map_disagreement":
        worst = _parting(pose[:, :3, 3], witness.poses.pose[frames][:, :3, 3])
    elif check == "vertical_run_s":
        a, b = longest_vertical_run(visible, one.map.point, pose, times_s)
        return first + a, first + b
    elif check == "outlier_coverage":
        non_sky = clip.centred(clip.non_sky_tracks.part(first, end))
        a, b = epipolar.worst_coverage(non_sky, pose, one.map.focal_px, times_s, clip.view.rect.w)
        return first + a, first + b
    else:
        return None
    return first + worst, first + worst + 1


def _steps(pose_N44: np.ndarray) -> np.ndarray:
    return pose_N44[:-1, :3, :3].transpose(0, 2, 1) @ pose_N44[1:, :3, :3]


def _steps_deg(pose_N44: np.ndarray) -> np.ndarray:
    return rotation.angle_deg(_steps(pose_N44))


def _parting(ours_N3: np.ndarray, theirs_N3: np.ndarray) -> int:
    """Return the frame at which two paths part: where one similarity before it and another one after it fit best."""
    count = len(ours_N3)
    places = np.unique(np.linspace(_MIN_PART, count - _MIN_PART, 24).astype(int))
    return int(min(places, key=lambda k: _misfit(ours_N3[:k], theirs_N3[:k]) + _misfit(ours_N3[k:], theirs_N3[k:])))


def _misfit(x: np.ndarray, y: np.ndarray) -> float:
    if not np.ptp(x, axis=0).max():
        return 0.0
    scale, turned, moved = umeyama(x, y)
    return float(((scale * x @ turned.T + moved - y) ** 2).sum())
