"""The judge on trial: what its scores are worth, from videos of which everything is known.

For each dimension: how often a fault in it is found, how often a video without a fault passes, and how much a fault elsewhere
pulls the score down (a halo). For the trigger: how often it is seen where nothing was to be seen.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from model.evaluation.control_accuracy import Proportion, proportion
from model.evaluation.interbench.faults import FAULTS
from model.evaluation.interbench.scores import DIMENSIONS, TITLES
from model.evaluation.statistics import Interval
from model.evaluation.tables import Column, Row, Table

# The three controls in which nothing may be triggered.
CONTROLS = {
    "no_instruction": "nothing happens in the video",
    "unrelated": "another interaction happens",
    "absent_object": "the object that the instruction needs is not there",
}
# A dimension is believed where it finds faults and passes what is right, together, this much better than chance.
MIN_BELIEF = 0.5
_PASS, _FAIL = 3, 1


class Specimen(NamedTuple):
    """A judged video of known content. kind: true, a fault, or a control. take: its origin. scores: None if invalid."""

    take: str
    kind: str
    scores: Mapping[str, float] | None


class Belief(NamedTuple):
    """How far a judge can be believed in a dimension; None and NaN where no specimen tells.

    found: share of faults in this dimension whose score is 1 or less. passed: share of faultless videos whose score is 3 or
    more (trigger: 1). belief: found + passed - 1, 0 for a judge that does not look (Youden's J). ranked: chance that a
    faultless video scores higher than one with the fault, ties half. halo: mean drop by faults in other dimensions, from the
    faultless video of the same take. varies: whether the judge uses more than one level.
    """

    dimension: str
    found: Proportion | None
    passed: Proportion | None
    belief: float
    ranked: float
    ranked_interval: Interval
    halo: float
    varies: bool

    @property
    def verdict(self) -> str:
        """Return believe, doubt, unknown, or `too few videos` where a judge that does not look could have the same belief."""
        if self.found is None or self.passed is None:
            return "unknown"
        if self.belief < MIN_BELIEF or not self.varies:
            return "doubt"
        return "believe" if self.found.low + self.passed.low > 1 else "too few videos"


class Trial(NamedTuple):
    """The result of a trial. false_triggers: by control. invalid: specimens without a valid reply."""

    beliefs: tuple[Belief, ...]
    false_triggers: Mapping[str, Proportion]
    missed_triggers: Mapping[str, Proportion]
    specimens: int
    invalid: int


def evaluate(specimens: Sequence[Specimen]) -> Trial:
    """Return what specimens of known content say about the judge that scored them."""
    valid = [one for one in specimens if one.scores is not None]
    controls = {name: [one.scores["trigger"] > 0 for one in valid if one.kind == name and one.scores] for name in CONTROLS}
    shown = {kind: [not one.scores["trigger"] for one in valid if one.kind == kind and one.scores] for kind in ("true", "late")}
    return Trial(
        tuple(_belief(name, valid) for name in DIMENSIONS),
        {name: proportion(hits) for name, hits in controls.items() if hits},
        {name: proportion(hits) for name, hits in shown.items() if hits},
        len(specimens),
        len(specimens) - len(valid),
    )


def _belief(dimension: str, valid: Sequence[Specimen]) -> Belief:
    right = [_score(one, dimension) for one in valid if one.kind == "true"]
    faulty = [_score(one, dimension) for one in valid if _faults_of(one.kind) == dimension]
    passes = [score >= (1 if dimension == "trigger" else _PASS) for score in right]
    finds = [score <= (0 if dimension == "trigger" else _FAIL) for score in faulty]
    found, passed = (proportion(hits) if hits else None for hits in (finds, passes))
    belief = found.share + passed.share - 1 if found and passed else float("nan")
    ranked, interval = _ranked(right, faulty)
    levels = {_score(one, dimension) for one in valid}
    return Belief(dimension, found, passed, belief, ranked, interval, _halo(dimension, valid), len(levels) > 1)


def _faults_of(kind: str) -> str:
    return FAULTS[kind][0] if kind in FAULTS else "trigger" if kind in CONTROLS else ""


def _score(one: Specimen, dimension: str) -> float:
    assert one.scores is not None
    return one.scores[dimension]


def _ranked(right: Sequence[float], faulty: Sequence[float]) -> tuple[float, Interval]:
    """Return the chance that a right one scores higher, ties half, with a bootstrap interval."""
    if not right or not faulty:
        return float("nan"), Interval.unknown()
    a, b = np.asarray(right, float), np.asarray(faulty, float)

    def share(x: np.ndarray, y: np.ndarray) -> float:
        return float((x[:, None] > y[None]).mean() + 0.5 * (x[:, None] == y[None]).mean())

    rng = np.random.default_rng(7)
    drawn = [share(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(300)]
    return share(a, b), Interval(*(float(v) for v in np.percentile(drawn, (2.5, 97.5))))


def _halo(dimension: str, valid: Sequence[Specimen]) -> float:
    """Return the mean drop by faults elsewhere that leave the trigger, from the faultless video of the same take."""
    whole = {one.take: _score(one, dimension) for one in valid if one.kind == "true" and _score(one, "trigger")}
    drops = [
        whole[one.take] - _score(one, dimension)
        for one in valid
        if one.kind in FAULTS and one.take in whole and _faults_of(one.kind) not in (dimension, "trigger", "align")
        if _score(one, "trigger")
    ]
    return float(np.mean(drops)) if drops else float("nan")


def tables(trial: Trial, judge: str) -> dict[str, Table]:
    """Return the tables of a trial, by file name."""
    columns = [Column("Found", "up", 2), Column("Passed", "up", 2), Column("Belief", "up", 2), Column("Ranked", "up", 2)]
    columns += [Column("Halo", "down", 2), Column("Verdict")]
    rows = []
    for one in trial.beliefs:
        shares = [part.share if part else None for part in (one.found, one.passed)]
        intervals = [Interval(part.low, part.high) if part else None for part in (one.found, one.passed)]
        cells = [*shares, one.belief, one.ranked, one.halo, one.verdict if one.varies else f"{one.verdict}: does not vary"]
        rows.append(Row(TITLES[one.dimension], cells, [*intervals, None, one.ranked_interval, None, None]))
    note = f"Judge {judge}: {trial.specimens} videos of known content, {trial.invalid} without a valid reply."
    triggers = [Row(f"False trigger, {CONTROLS[n]}", *_share(p)) for n, p in trial.false_triggers.items()]
    triggers += [Row(f"Missed trigger, {n} takes", *_share(p)) for n, p in trial.missed_triggers.items()]
    return {
        "judge-dimensions": Table("How far the judge can be believed", columns, rows, note),
        "judge-triggers": Table("Triggers", [Column("Share", "down", 2), Column("Videos")], triggers, note),
    }


def _share(part: Proportion) -> tuple[list[float | int], list[Interval | None]]:
    return [part.share, part.clips], [Interval(part.low, part.high), None]
