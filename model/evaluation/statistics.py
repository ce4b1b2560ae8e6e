"""Statistics of evaluations: bootstrap intervals, paired differences, agreement of repeats, and Bradley-Terry strengths."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_DRAWS, _SEED = 1000, 7


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    @classmethod
    def unknown(cls) -> "Interval":
        return cls(float("nan"), float("nan"))


def bootstrap(
    groups: Sequence[np.ndarray], statistic: Callable[[list[np.ndarray]], float], draws: int = _DRAWS, seed: int = _SEED
) -> Interval:
    """Return the percentile interval of a statistic, under new draws of the rows inside each group (Efron 1979).

    groups: arrays with a row for each item, such as the videos of a subset. A seed gives the same interval again.
    """
    rng = np.random.default_rng(seed)
    values = [statistic([g[rng.integers(0, len(g), len(g))] for g in groups]) for _ in range(draws)]
    return Interval(*(float(v) for v in np.nanpercentile(values, (2.5, 97.5))))


def mean_interval(values: Sequence[float], draws: int = _DRAWS, seed: int = _SEED) -> Interval:
    """Return the bootstrap interval of a mean. Unknown for fewer than two values."""
    known = np.asarray([v for v in values if np.isfinite(v)], float)
    if len(known) < 2:
        return Interval.unknown()
    rng = np.random.default_rng(seed)
    means = known[rng.integers(0, len(known), (draws, len(known)))].mean(1)
    return Interval(*(float(v) for v in np.percentile(means, (2.5, 97.5))))


class PairedDifference(NamedTuple):
    """The mean difference of two runs over the items that both have. `wins`: share of items in which the first is higher."""

    mean: float
    interval: Interval
    wins: float
    items: int


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare two runs item by item (first - second). Ties count half a win. NaN where no item is known in both."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape:
        raise ValueError(f"runs of different items cannot be paired: {len(a)} and {len(b)}")
    difference = (a - b)[np.isfinite(a - b)]
    if not len(difference):
        return PairedDifference(float("nan"), Interval.unknown(), float("nan"), 0)
    wins = float((difference > 0).mean() + 0.5 * (difference == 0).mean())
    return PairedDifference(float(difference.mean()), mean_interval(difference.tolist()), wins, len(difference))


def pair_agreement(repeats: Sequence[Sequence[float]]) -> float:
    """Return the share of pairs of repeats of the same item that are equal. NaN where no item has two repeats."""
    pairs = [a == b for item in repeats for i, a in enumerate(item) for b in item[i + 1 :]]
    return float(np.mean(pairs)) if pairs else float("nan")


def krippendorff_alpha(repeats: Sequence[Sequence[float]], scale: Sequence[float]) -> float:
    """Return Krippendorff's alpha for ordinal values: 1 is full agreement, 0 is what chance would give.

    Items with fewer than two repeats do not count. NaN where all values are equal, since then nothing can disagree.
    """
    levels = {value: index for index, value in enumerate(scale)}
    coincidence = np.zeros((len(scale), len(scale)))
    for item in repeats:
        if len(item) < 2:
            continue
        for i, a in enumerate(item):
            for j, b in enumerate(item):
                if i != j:
                    coincidence[levels[a], levels[b]] += 1 / (len(item) - 1)
    totals = coincidence.sum(0)
    if totals.sum() < 2:
        return float("nan")
    # The distance of two levels: how many values lie between them, half of their own counted.
    cumulative = np.cumsum(totals) - totals / 2
    distance = (cumulative[:, None] - cumulative[None, :]) ** 2
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (coincidence * distance).sum() / expected) if expected > 0 else float("nan")


class Strength(NamedTuple):
    """A player's Bradley-Terry strength (natural logarithm, mean 0 over all players) and how often it was compared."""

    name: str
    strength: float
    interval: Interval
    comparisons: int


def bradley_terry(comparisons: Sequence[tuple[str, str, float]], draws: int = 200, seed: int = _SEED) -> list[Strength]:
    """Fit Bradley-Terry strengths to comparisons (first, second, score of the first: 1, 0, or 0.5 for a tie), strongest first.

    Intervals come from new draws of the comparisons. Each pair of players gets half a tie as prior, so that strengths are
    finite where one always wins.
    """
    names = sorted({name for row in comparisons for name in row[:2]})
    index = {name: i for i, name in enumerate(names)}
    table = np.array([(index[a], index[b], score) for a, b, score in comparisons], float).reshape(-1, 3)
    fitted = _fit(table, len(names))
    rng = np.random.default_rng(seed)
    drawn = np.array([_fit(table[rng.integers(0, len(table), len(table))], len(names)) for _ in range(draws)])
    low, high = np.percentile(drawn, (2.5, 97.5), 0) if len(table) else (fitted, fitted)
    counts = [int(((table[:, 0] == i) | (table[:, 1] == i)).sum()) for i in range(len(names))]
    rows = [
        Strength(n, float(f), Interval(float(a), float(b)), c)
        for n, f, a, b, c in zip(names, fitted, low, high, counts, strict=True)
    ]
    return sorted(rows, key=lambda row: -row.strength)


def _fit(table: np.ndarray, players: int) -> np.ndarray:
    """Return strengths by the MM algorithm of Hunter (2004), section 2."""
    wins = np.full((players, players), 0.25) - 0.25 * np.eye(players)  # half a tie for each pair
    for first, second, score in table:
        wins[int(first), int(second)] += score
        wins[int(second), int(first)] += 1 - score
    games, won, p = wins + wins.T, wins.sum(1), np.ones(players)
    for _ in range(500):
        updated = won / np.maximum((games / (p[:, None] + p[None, :])).sum(1), 1e-12)
        updated /= np.exp(np.log(updated).mean())
        if np.abs(np.log(updated / p)).max() < 1e-9:
            p = updated
            break
        p = updated
    return np.log(p)
