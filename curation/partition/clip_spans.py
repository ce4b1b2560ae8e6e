"""How a scene is divided into clips of about six seconds whose boundaries avoid what happens (paper section 3.4); all pure."""

from itertools import pairwise

import numpy as np

from curation.partition.cuts import SceneSettings

# What a clip costs a second away from the wanted length, in px/frame of motion at its boundary: settles ties, does not outvote
# a turn. Beyond the slack a second costs as much as a walk, so that little but an interaction is worth it.
_PULL, _STRETCH = 0.05, 3.0
_MOST_MOTION, _INTERACTION = 10.0, 20.0  # px/frame: what the fastest turn may count for, and what a certain interaction does


def unrest(motion: np.ndarray, event: np.ndarray) -> np.ndarray:
    """How bad a boundary is at each time [K], from smoothed motion px/frame and the probability that something happens."""
    return np.minimum(motion, _MOST_MOTION) + _INTERACTION * event


def divide(
    start_s: float, end_s: float, settings: SceneSettings, times_s: np.ndarray, unrest_K: np.ndarray
) -> list[tuple[float, float]]:
    """Divide a scene [start_s, end_s) into touching spans of about `clip_s`; together they are the scene.

    Of all divisions whose boundaries are among times_s [K, increasing] it takes the one with the least sum of unrest [K] at
    boundaries and of clips' odd lengths, by dynamic programming. No clip is longer than `longest_s`; none shorter than
    `min_clip_s`, but a scene that is itself. Where times lie too far apart for that, boundaries are put between them.
    """
    if end_s - start_s <= settings.longest_s:
        return [(start_s, end_s)]
    inside = (times_s > start_s) & (times_s < end_s)
    times = np.concatenate([[start_s], times_s[inside], [end_s]])
    back = _least_cost(times, np.concatenate([[0.0], unrest_K[inside], [0.0]]), settings)
    if back is None:
        even = np.linspace(start_s, end_s, int(np.ceil((end_s - start_s) / settings.clip_s - 1e-9)) + 1)
        return list(pairwise(even.tolist()))
    bounds = [len(times) - 1]
    while bounds[-1]:
        bounds.append(int(back[bounds[-1]]))
    chosen = times[bounds[::-1]].tolist()
    return list(pairwise(chosen))


def _least_cost(times: np.ndarray, cost: np.ndarray, settings: SceneSettings) -> np.ndarray | None:
    """For each time the boundary before it in the best division up to there, int [K]; none if the end cannot be reached."""
    shortest, longest = settings.min_clip_s - 1e-9, settings.longest_s + 1e-9
    low, high = np.searchsorted(times, times - longest), np.searchsorted(times, times - shortest, side="right")
    best, back = np.full(len(times), np.inf), np.zeros(len(times), np.int64)
    best[0] = 0.0
    for k in range(1, len(times)):
        if high[k] > low[k]:
            total = best[low[k] : high[k]] + _odd_length(times[k] - times[low[k] : high[k]], settings)
            back[k] = low[k] + int(np.argmin(total))
            best[k] = total.min() + cost[k]
    return back if np.isfinite(best[-1]) else None


def _odd_length(length_s: np.ndarray, settings: SceneSettings) -> np.ndarray:
    off = np.abs(length_s - settings.clip_s)
    return _PULL * off + _STRETCH * np.maximum(off - settings.slack_s, 0)
