"""Divide a scene into clips of about six seconds whose boundaries avoid actions (paper section 3.4). Pure functions."""

from itertools import pairwise

import numpy as np

from curation.partition.cuts import SceneSettings

# The cost of each second by which a clip misses the wanted length, in px/frame of motion at its boundary. It settles ties and
# does not outweigh a turn. Beyond the slack a second costs as much as a walk, so only an interaction is worth it.
_LENGTH_COST, _BEYOND_SLACK_COST = 0.05, 3.0
# px/frame: how much the fastest turn may cost, and how much a certain interaction costs.
_MAX_MOTION_COST, _INTERACTION_COST = 10.0, 20.0


def boundary_cost(motion: np.ndarray, event_probability: np.ndarray) -> np.ndarray:
    """Return how bad a boundary is at each time [K], from smoothed motion px/frame and the probability of an event."""
    return np.minimum(motion, _MAX_MOTION_COST) + _INTERACTION_COST * event_probability


def divide_scene(
    start_s: float, end_s: float, settings: SceneSettings, times_s: np.ndarray, cost_K: np.ndarray
) -> list[tuple[float, float]]:
    """Divide a scene [start_s, end_s) into touching spans of about `clip_s` that cover it.

    Of all divisions with boundaries among times_s [K, increasing], this finds the one with the smallest sum of the cost [K] of
    its boundaries and of the cost of its clips' lengths, by dynamic programming. No clip is longer than `longest_s`, and none
    is shorter than `min_clip_s` unless the whole scene is. Where the times are too far apart for that, boundaries are put
    between them.
    """
    if end_s - start_s <= settings.longest_s:
        return [(start_s, end_s)]
    inside = (times_s > start_s) & (times_s < end_s)
    times = np.concatenate([[start_s], times_s[inside], [end_s]])
    back = _previous_boundaries(times, np.concatenate([[0.0], cost_K[inside], [0.0]]), settings)
    if back is None:
        even = np.linspace(start_s, end_s, int(np.ceil((end_s - start_s) / settings.clip_s - 1e-9)) + 1)
        return list(pairwise(even.tolist()))
    bounds = [len(times) - 1]
    while bounds[-1]:
        bounds.append(int(back[bounds[-1]]))
    chosen = times[bounds[::-1]].tolist()
    return list(pairwise(chosen))


def _previous_boundaries(times: np.ndarray, cost: np.ndarray, settings: SceneSettings) -> np.ndarray | None:
    """Return for each time the boundary before it in the best division up to there, int [K]; None if the end is unreachable."""
    shortest, longest = settings.min_clip_s - 1e-9, settings.longest_s + 1e-9
    low, high = np.searchsorted(times, times - longest), np.searchsorted(times, times - shortest, side="right")
    best, back = np.full(len(times), np.inf), np.zeros(len(times), np.int64)
    best[0] = 0.0
    for k in range(1, len(times)):
        if high[k] > low[k]:
            total = best[low[k] : high[k]] + _length_cost(times[k] - times[low[k] : high[k]], settings)
            back[k] = low[k] + int(np.argmin(total))
            best[k] = total.min() + cost[k]
    return back if np.isfinite(best[-1]) else None


def _length_cost(length_s: np.ndarray, settings: SceneSettings) -> np.ndarray:
    off = np.abs(length_s - settings.clip_s)
    return _LENGTH_COST * off + _BEYOND_SLACK_COST * np.maximum(off - settings.slack_s, 0)
