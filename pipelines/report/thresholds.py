"""What other limits would keep: every rule at a few limits, on the scores in the ledger. Nothing is measured again."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.quality.luminance import RULES, Rule
from pipelines import ledger
from pipelines.recipes import CLIP_PHASES

# The limits to try cut off these shares of the clips, by the rule alone.
_CUT_OFF = (0.0, 0.02, 0.05, 0.1, 0.25)


@dataclass(frozen=True)
class Trial:
    """The clips that one rule at one limit would keep, with all other rules as in the recipe."""

    rule: Rule
    limit: float | None  # None: switched off
    current: bool  # whether this is the limit in the recipe
    kept: int = 0
    kept_s: float = 0.0
    rejected: int = 0
    rejected_s: float = 0.0


def trials(out: str, dataset: dict[str, Any]) -> list[Trial]:
    """Try every rule at its current limit, at a few others and switched off, on the clips that passed partition."""
    clips = _scored_clips(out)
    seconds = _column(clips, "end_s") - _column(clips, "start_s")
    limits = {rule: _limit(dataset, rule) for rule in RULES}
    broken = {rule: _broken(rule, _column(clips, rule.score), limits[rule]) for rule in RULES}
    results = []
    for rule in RULES:
        others = np.any([broken[other] for other in RULES if other is not rule], 0)
        for trial in _candidates(rule, _column(clips, rule.score), limits[rule]):
            lost = others | _broken(rule, _column(clips, rule.score), trial.limit)
            kept_s, rejected_s = float(seconds[~lost].sum()), float(seconds[lost].sum())
            counts = int((~lost).sum()), int(lost.sum())
            results.append(replace(trial, kept=counts[0], kept_s=kept_s, rejected=counts[1], rejected_s=rejected_s))
    return results


def _scored_clips(out: str) -> pa.Table:
    """Return the clips that passed partition, with what the rules look at."""
    columns = list(dict.fromkeys(("start_s", "end_s", *(rule.score for rule in RULES))))
    tables = []
    for part in ledger.scan(out, (*columns, "reject", "error")):
        passed = ledger.kept_clips(ledger.verdicts([part.phases[CLIP_PHASES[0]]]))
        tables.append(part.clips.filter(pc.is_in(part.clips["clip_id"], passed["clip_id"].combine_chunks())).select(columns))
    return pa.concat_tables(tables)


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False), float)


def _limit(dataset: dict[str, Any], rule: Rule) -> float | None:
    value = dataset.get("recipe", {}).get("score", {}).get(rule.settings, {}).get(rule.limit)
    return None if value is None else float(value)


def _broken(rule: Rule, scores: np.ndarray, limit: float | None) -> np.ndarray:
    """Return which clips break the rule at a limit. A clip without the score does not break it."""
    return np.array([rule.breaks(None if np.isnan(score) else score, limit) for score in scores], bool)


def _candidates(rule: Rule, scores: np.ndarray, current: float | None) -> list[Trial]:
    """Return trials from the most lenient limit to the strictest, with the rule switched off first."""
    known = scores[np.isfinite(scores)]
    shares = [share if rule.is_minimum else 1 - share for share in _CUT_OFF]
    limits = {float(f"{value:.3g}") for value in np.quantile(known, shares)} if len(known) else set()
    ordered = sorted(limits | ({current} if current is not None else set()), reverse=not rule.is_minimum)
    return [Trial(rule, None, current is None), *(Trial(rule, limit, limit == current) for limit in ordered)]
