"""Filters (paper section 3.4, second stage): they judge the scores that a row already has."""

from curation.quality.luminance import LuminanceLimits, QualityLimits, reject_reason
from curation.schema import Row
from operators.op import each


@each
def judge_luminance(row: Row, limits: LuminanceLimits) -> Row:
    """Reject a clip whose luminance breaks a limit. The reason names the rule, the score and the limit."""
    return {**row, "reject": reject_reason(row, limits)}


@each
def judge_quality(row: Row, limits: QualityLimits) -> Row:
    """Reject a clip whose picture is too far from clean. The reason names the strongest fault. An earlier reason stays."""
    return {**row, "reject": row.get("reject") or reject_reason(row, limits)}
