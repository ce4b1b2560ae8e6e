"""What benchmarks and training share: ranking, matching of instants and of intervals, regimes that last."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.actions import spans
from synth.doom import truth


def lasting_regimes(told: truth.Truth) -> list[str]:
    """The engine's regime at each frame, those shorter than the least that we name given to the one before."""
    return spans.settled(truth.regimes(told), told.time_s, spans.RegimeSettings().min_s)


def auc(score: np.ndarray, flags: np.ndarray) -> float:
    """How often a flagged item scores above one that is not; ties count half; nan where all or none are flagged."""
    positive = int(flags.sum())
    if positive in (0, len(flags)):
        return float("nan")
    rank = _mean_ranks(score)
    return float((rank[flags].mean() - (positive + 1) / 2) / (len(flags) - positive))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank; nan where one does not vary."""
    ranks = _mean_ranks(a), _mean_ranks(b)
    return float(np.corrcoef(*ranks)[0, 1]) if min(np.ptp(rank) for rank in ranks) > 0 else float("nan")


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


class Hits(NamedTuple):
    """How many of the true ones were found, how many were true, how many were found at all."""

    hit: int = 0
    true: int = 0
    found: int = 0

    def plus(self, other: "Hits") -> "Hits":
        return Hits(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def false(self) -> int:
        return self.found - self.hit

    @property
    def f1(self) -> float:
        return 2 * self.hit / max(1, self.true + self.found)


def matched(found: Sequence[float], true: Sequence[float], within: float) -> Hits:
    """Instants found and true, each paired with one at most, in order of time."""
    left, hit = sorted(found), 0
    for instant in sorted(true):
        near = [other for other in left if abs(other - instant) <= within + 1e-9]
        if near:
            left.remove(near[0])
            hit += 1
    return Hits(hit, len(true), len(found))


def contained(true: Sequence[tuple[float, float]], found: Sequence[tuple[float, float]], within: float) -> int:
    """How many true intervals lie inside a found one that is made longer by `within` at both ends."""
    return sum(any(a - within <= start and end <= b + within for a, b in found) for start, end in true)
