"""What is believed of a clip's camera: a status from numbers alone, pure, so that limits can be changed without a new look."""

import math

from curation.cameras.camera import Facts
from curation.cameras.settings import CheckSettings

_OK = {"static": "ok_static", "rotation": "ok_rotation", "general": "ok"}


def judged(facts: Facts, limits: CheckSettings) -> Facts:
    """The facts with their status, and in `why` the checks that a suspect one missed; one that has failed stays so."""
    if facts.status.startswith("failed"):
        return facts
    if facts.tracks is not None and facts.tracks < limits.tracks:
        return facts._replace(status="low_texture", why=f"{facts.tracks:.0f} tracks a frame")
    missed = [*_general(facts, limits), *focal_missed(facts, limits)]
    if missed:
        return facts._replace(status="suspect", why=", ".join(missed))
    return facts._replace(status=_OK[facts.model or "general"], why=None)


def _general(facts: Facts, limits: CheckSettings) -> list[str]:
    """Checks on the trajectory. A number that is missing was not looked at, one that is NaN is missed."""
    rows = [
        ("static share", facts.static_share, None, limits.static_share),
        ("reached", facts.registered, limits.reached, None),
        ("points", facts.points, limits.points, None),
        ("inliers", facts.inliers_min, limits.inliers, None),
        ("inlier share", facts.inlier_share, limits.inlier_share, None),
        ("residual px", facts.residual_px, None, limits.rotation_left_px if facts.model == "rotation" else limits.residual_px),
        ("residual p95 px", facts.residual_p95_px, None, limits.residual_p95_px if facts.model == "general" else math.inf),
        ("maps apart", facts.apart, None, limits.apart),
        ("maps apart deg", facts.apart_deg, None, limits.apart_deg),
        ("links", facts.links, limits.links, None),
        ("contradicted", facts.contradicted, None, limits.contradicted),
        ("rise s", facts.rise_s, None, limits.rise_s),
        ("step ratio", facts.step_ratio, None, limits.step_ratio),
        ("spike", facts.spike, None, limits.spike),
        ("turn a frame", facts.max_turn_deg, None, limits.max_turn_deg),
    ]
    return [f"{name} {value:.3g}" for name, value, least, most in rows if value is not None and not _within(value, least, most)]


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def focal_missed(facts: Facts, limits: CheckSettings) -> list[str]:
    """A focal length that was not told must have been seen: by this clip, or by others of its source."""
    if facts.focal_source == "none":
        return ["focal length not observable"]
    missed = []
    if facts.focal_source == "clip" and not (facts.focal_error is not None and facts.focal_error <= limits.focal_error):
        missed.append("focal error unknown" if facts.focal_error is None else f"focal error {facts.focal_error:.3g}")
    low, high = limits.focal_range
    if facts.focal_share is not None and not low <= facts.focal_share <= high:
        missed.append(f"focal length {facts.focal_share:.2f} of the width")
    return missed
