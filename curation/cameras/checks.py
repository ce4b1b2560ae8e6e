"""Turn the numbers of a clip's camera into a status. The functions are pure, so limits can change without a new estimate."""

import math

from curation.cameras.camera import CameraFacts
from curation.cameras.settings import CheckSettings

OK_BY_MODEL = {"static": "ok_static", "rotation": "ok_rotation", "general": "ok"}


def apply_checks(facts: CameraFacts, limits: CheckSettings) -> CameraFacts:
    """Return the facts with their status. A clip that has failed stays failed.

    `why` of a suspect clip lists the checks it missed. Each is named by its ledger column without `camera_`.
    """
    if facts.status.startswith("failed"):
        return facts
    if facts.tracks is not None and facts.tracks < limits.min_tracks:
        return facts._replace(status="low_texture", why=f"tracks {facts.tracks:.0f}")
    missed = [*missed_checks(facts, limits), *missed_focal_checks(facts, limits)]
    if missed:
        return facts._replace(status="suspect", why=", ".join(missed))
    return facts._replace(status=OK_BY_MODEL[facts.model or "general"], why=None)


def missed_checks(facts: CameraFacts, limits: CheckSettings) -> list[str]:
    """Checks on the trajectory. None means that a number was not measured, which passes; NaN fails."""
    residual_px = limits.max_joint_rotation_residual_px if facts.model == "rotation" else limits.max_residual_px
    rotation_residual_px = limits.max_rotation_residual_px if facts.model == "rotation" else math.inf
    residual_p95_px = limits.max_residual_p95_px if facts.model == "general" else math.inf
    rows = [
        ("static_share", None, limits.max_static_share),
        ("registered", limits.min_registered, None),
        ("parallax", limits.min_parallax, None),
        ("points", limits.min_points, None),
        ("inliers_min", limits.min_inliers, None),
        ("inlier_share", limits.min_inlier_share, None),
        ("rotation_residual_px", None, rotation_residual_px),
        ("residual_px", None, residual_px),
        ("residual_p95_px", None, residual_p95_px),
        ("map_disagreement", None, limits.max_map_disagreement),
        ("map_disagreement_deg", None, limits.max_map_disagreement_deg),
        ("scale_links", limits.min_scale_links, None),
        ("outlier_coverage", None, limits.max_outlier_coverage),
        ("vertical_run_s", None, limits.max_vertical_run_s),
        ("step_ratio", None, limits.max_step_ratio),
        ("velocity_spike", None, limits.max_velocity_spike),
        ("max_turn_deg", None, limits.max_turn_deg),
    ]
    values = {name: getattr(facts, name) for name, _, _ in rows}
    missed = [name for name, low, high in rows if values[name] is not None and not _is_within(values[name], low, high)]
    return [f"{name} {values[name]:.3g}" for name in missed]


def _is_within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def missed_focal_checks(facts: CameraFacts, limits: CheckSettings) -> list[str]:
    """Checks on the focal length. One that was not given must be observed, in this clip or in others of its source."""
    if facts.focal_source == "none":
        return ["focal length not observable"]
    missed = []
    if facts.focal_source == "clip" and not (facts.focal_error is not None and facts.focal_error <= limits.max_focal_error):
        missed.append("focal_error unknown" if facts.focal_error is None else f"focal_error {facts.focal_error:.3g}")
    if facts.focal_share is not None and not limits.min_focal_share <= facts.focal_share <= limits.max_focal_share:
        missed.append(f"focal_share {facts.focal_share:.2f}")
    return missed
