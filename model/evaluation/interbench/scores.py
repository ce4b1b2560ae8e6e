"""Scores of InterBench: the scales, the rule of the trigger, the Overall formula, and the means over a test set.

A score is a mean over a video's valid repeats. Its video counts in its subset, each subset in its category, each category in
the whole. Videos without a valid reply count nowhere.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from curation.vlm import question_files
from model.evaluation.interbench import suite
from model.evaluation.statistics import Interval, bootstrap

DIMENSIONS = ("trigger", "align", "fluency", "scope", "end_state", "physics")
SCALE = (0, 1, 3, 5)
TITLES = {
    "trigger": "Trigger",
    "align": "Align",
    "fluency": "Fluency",
    "scope": "Scope",
    "end_state": "EndState",
    "physics": "Physics",
}
_WEIGHTS = np.array([5.0, 1.0, 1.0, 1.0, 1.0, 1.0]) / 6


class VideoScore(NamedTuple):
    """The scores of a video, in the order of `DIMENSIONS`; None where no reply was valid."""

    name: str
    subset: str
    scores: tuple[float, ...] | None


class GroupScore(NamedTuple):
    """The means of a subset, a category or the whole.

    level: subset | category | global. means: in the order of `DIMENSIONS`, NaN without a valid video. interval: of Overall.
    videos: how many count. invalid: how many had no valid reply.
    """

    level: str
    name: str
    means: tuple[float, ...]
    interval: Interval
    videos: int
    invalid: int

    @property
    def overall(self) -> float:
        return overall(self.means)


def apply_trigger(scores: Mapping[str, int]) -> dict[str, int]:
    """Return the scores with the rule of appendix C: without a trigger all other scores are 0. ValueError off the scales."""
    for name in DIMENSIONS:
        allowed = (0, 1) if name == "trigger" else SCALE
        if scores[name] not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, not {scores[name]!r}")
    return {name: scores[name] if scores["trigger"] else 0 for name in DIMENSIONS}


def overall(means: Sequence[float] | np.ndarray) -> float:
    """Return the paper's Overall: (5 Trigger + Align + Fluency + Scope + EndState + Physics) / 6, from 0 to 5."""
    return float(np.dot(_WEIGHTS, np.asarray(means, float)))


def aggregate(videos: Sequence[VideoScore], weighting: str = "subset") -> list[GroupScore]:
    """Return the scores of each subset, each category, and the whole, in this order.

    weighting: what a category is the mean of: its subsets (subset), or its videos (video). The paper's text allows both; they
    differ where subsets differ in size. Subsets and categories without a valid video are left out of what stands above them.
    """
    if weighting not in ("subset", "video"):
        raise ValueError(f"weighting must be subset or video, not {weighting!r}")
    by_subset = {name: [v for v in videos if v.subset == name] for name in suite.subsets()}
    by_category = {
        name: {s: v for s, v in by_subset.items() if suite.subsets()[s].category == name} for name in suite.categories()
    }
    groups = [_group("subset", name, [rows], weighting) for name, rows in by_subset.items() if rows]
    groups += [_group("category", c, list(rows.values()), weighting) for c, rows in by_category.items() if any(rows.values())]
    everything = [list(rows.values()) for rows in by_category.values() if any(rows.values())]
    return [*groups, _whole(everything, weighting)]


def _group(level: str, name: str, parts: Sequence[Sequence[VideoScore]], weighting: str) -> GroupScore:
    valid = [_matrix(part) for part in parts if _matrix(part).size]
    count, invalid = sum(map(len, valid)), sum(len(part) for part in parts) - sum(map(len, valid))
    interval = bootstrap(valid, lambda drawn: overall(_mean(drawn, weighting))) if count else Interval.unknown()
    return GroupScore(level, name, tuple(_mean(valid, weighting)), interval, count, invalid)


def _whole(categories: Sequence[Sequence[Sequence[VideoScore]]], weighting: str) -> GroupScore:
    """Return the mean over categories. Its interval comes from new draws of the videos inside every subset."""
    parts = [[_matrix(part) for part in category if _matrix(part).size] for category in categories]
    parts = [category for category in parts if category]
    sizes = np.cumsum([0, *(len(category) for category in parts)])
    flat = [part for category in parts for part in category]
    total = sum(len(part) for category in categories for part in category)

    def means(drawn: Sequence[np.ndarray]) -> np.ndarray:
        each = [_mean(drawn[a:b], weighting) for a, b in itertools.pairwise(sizes)]
        return np.mean(each, 0) if each else np.full(len(DIMENSIONS), np.nan)

    interval = bootstrap(flat, lambda drawn: overall(means(drawn))) if flat else Interval.unknown()
    count = sum(map(len, flat))
    return GroupScore("global", "all", tuple(means(flat)), interval, count, total - count)


def _matrix(videos: Sequence[VideoScore]) -> np.ndarray:
    return np.array([video.scores for video in videos if video.scores is not None], float)


def _mean(parts: Sequence[np.ndarray], weighting: str) -> np.ndarray:
    if not parts:
        return np.full(len(DIMENSIONS), np.nan)
    return np.concatenate(parts).mean(0) if weighting == "video" else np.mean([part.mean(0) for part in parts], 0)


@cache
def table5() -> tuple[tuple[Any, ...], ...]:
    """Return the rows of the paper's table 5: category, method, six means."""
    rows = question_files.load("model.evaluation.interbench:table5")["rows"]
    return tuple(tuple(row) for row in rows)


def reference_rows(category: str = "") -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield method and six means of table 5 for a category, or the means over the three categories."""
    for method in dict.fromkeys(row[1] for row in table5()):
        rows = [row[2:] for row in table5() if row[1] == method and category in ("", row[0])]
        yield method, tuple(np.mean(np.array(rows, float), 0).tolist())
