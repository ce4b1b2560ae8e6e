"""What other limits would keep: every rule tried at a few limits on the scores in the ledger; nothing is measured again."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.output_folder import OutputFolder
from curation.quality.luminance import RULES, Rule
from curation.schema import CLIP
from pipelines import ledger
from pipelines.recipes import CLIP_PHASES

# Candidates cut off these shares of the clips, by the rule alone.
_CUT_OFF = (0.0, 0.02, 0.05, 0.1, 0.25)


@dataclass(frozen=True)
class Trial:
    """One rule at one limit (null: switched off), all others as they are: what would be kept and what not."""

    rule: Rule
    limit: float | None
    current: bool
    kept: int = 0
    kept_s: float = 0.0
    rejected: int = 0
    rejected_s: float = 0.0


def trials(out: str, dataset: dict[str, Any]) -> list[Trial]:
    """Every rule at its current limit, at a few others and switched off, over the clips that partition gave to be judged."""
    clips = _judged(out)
    seconds = _column(clips, "end_s") - _column(clips, "start_s")
    limits = {rule: _limit(dataset, rule) for rule in RULES}
    broken = {rule: _broken(rule, _column(clips, rule.score), limits[rule]) for rule in RULES}
    found = []
    for rule in RULES:
        others = np.any([broken[other] for other in RULES if other is not rule], 0)
        for trial in _candidates(rule, _column(clips, rule.score), limits[rule]):
            lost = others | _broken(rule, _column(clips, rule.score), trial.limit)
            kept_s, rejected_s = float(seconds[~lost].sum()), float(seconds[lost].sum())
            counts = int((~lost).sum()), int(lost.sum())
            found.append(replace(trial, kept=counts[0], kept_s=kept_s, rejected=counts[1], rejected_s=rejected_s))
    return found


def _judged(out: str) -> pa.Table:
    """The clips that partition let pass, with all of their scores."""
    table, _ = ledger.read_all(OutputFolder(out).clips(CLIP_PHASES[0]), CLIP)
    passed = table.filter(pc.and_(pc.is_null(table["reject"]), pc.is_null(table["error"])))
    clips = ledger.clips(out)
    return clips.filter(pc.is_in(clips["clip_id"], passed["clip_id"].combine_chunks()))


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False), float)


def _limit(dataset: dict[str, Any], rule: Rule) -> float | None:
    value = dataset.get("recipe", {}).get("score", {}).get(rule.settings, {}).get(rule.limit)
    return None if value is None else float(value)


def _broken(rule: Rule, scores: np.ndarray, limit: float | None) -> np.ndarray:
    """Which clips break the rule at a limit; what was not measured breaks none."""
    return np.array([rule.breaks(None if np.isnan(score) else score, limit) for score in scores], bool)


def _candidates(rule: Rule, scores: np.ndarray, current: float | None) -> list[Trial]:
    """From the mildest limit to the strictest; switched off first."""
    known = scores[np.isfinite(scores)]
    shares = [share if rule.least else 1 - share for share in _CUT_OFF]
    tried = {float(f"{value:.3g}") for value in np.quantile(known, shares)} if len(known) else set()
    ordered = sorted(tried | ({current} if current is not None else set()), reverse=not rule.least)
    return [Trial(rule, None, current is None), *(Trial(rule, limit, limit == current) for limit in ordered)]
