"""Measures that benchmarks and training share: ranking, matching of instants and intervals, and lasting regimes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.actions import spans
from synth.doom import truth


def lasting_regimes(ground_truth: truth.Truth) -> list[str]:
    """Return the engine's regime at each frame. One shorter than our shortest span belongs to the regime before it."""
    return spans.merge_short_runs(truth.regimes(ground_truth), ground_truth.time_s, spans.RegimeSettings().min_s)


def auc(score: np.ndarray, flags: np.ndarray) -> float:
    """Return how often a flagged item scores above one that is not. Ties count half. NaN where all or none are flagged."""
    positive = int(flags.sum())
    if positive in (0, len(flags)):
        return float("nan")
    rank = _mean_ranks(score)
    return float((rank[flags].mean() - (positive + 1) / 2) / (len(flags) - positive))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation, with ties sharing their mean rank. NaN where one of the two does not vary."""
    ranks = _mean_ranks(a), _mean_ranks(b)
    return float(np.corrcoef(*ranks)[0, 1]) if min(np.ptp(rank) for rank in ranks) > 0 else float("nan")


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1. Equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


class Hits(NamedTuple):
    """Counts of a detector's results."""

    hit: int = 0  # true ones that were detected
    true: int = 0
    detected: int = 0

    def plus(self, other: "Hits") -> "Hits":
        return Hits(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def false(self) -> int:
        return self.detected - self.hit

    @property
    def f1(self) -> float:
        return 2 * self.hit / max(1, self.true + self.detected)


def match_instants(detected: Sequence[float], true: Sequence[float], within: float) -> Hits:
    """Match detected and true instants in order of time, each with at most one that is at most `within` away."""
    unmatched, hit = sorted(detected), 0
    for instant in sorted(true):
        near = [other for other in unmatched if abs(other - instant) <= within + 1e-9]
        if near:
            unmatched.remove(near[0])
            hit += 1
    return Hits(hit, len(true), len(detected))


def count_contained(true: Sequence[tuple[float, float]], detected: Sequence[tuple[float, float]], within: float) -> int:
    """Count the true intervals that lie inside a detected one, which is lengthened by `within` at both ends."""
    return sum(any(a - within <= start and end <= b + within for a, b in detected) for start, end in true)
