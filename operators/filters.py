"""Filters (paper section 3.4, second stage): they judge scores that are already in the row."""

from curation.quality.luminance import LuminanceLimits, QualityLimits, verdict
from curation.schema import Row
from operators.op import each


@each
def judge_luminance(row: Row, limits: LuminanceLimits) -> Row:
    """Reject a clip whose luminance breaks a limit; the reason names the rule and both numbers."""
    return {**row, "reject": verdict(row, limits)}


@each
def judge_quality(row: Row, limits: QualityLimits) -> Row:
    """Reject a clip whose picture is too far from clean; the reason names what ails it. An earlier reason stays."""
    return {**row, "reject": row.get("reject") or verdict(row, limits)}
