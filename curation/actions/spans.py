"""Turn signals into spans of actions (paper section 3.4: action boundaries). Pure functions.

A regime is a span of one kind of camera motion: still, turning, looking up or down, walking, strafing. Its start and end are
action boundaries. An interaction is a span in which something happens on screen: a door, a shot, a tool in hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from curation.partition.optical_flow import FlowMotion

_SMOOTH_S = 0.3


@dataclass(frozen=True)
class RegimeSettings:
    """When camera motion counts as a regime. Rates are in px/s at 320 wide: with a view of 90 degrees, 320 px is 90 degrees."""

    min_turn_px_s: float = 90.0  # px/s sideways from which the camera turns left or right
    min_look_px_s: float = 60.0  # px/s up or down from which it looks up or down
    min_walk_px_s: float = 50.0  # px/s of expansion, half a width from the middle, from which the player walks
    min_strafe_px_s: float = 60.0  # px/s of parallax from which the player strafes
    min_s: float = 0.3  # seconds; a shorter regime belongs to the one before it


class ActionSpan(NamedTuple):
    """One action."""

    start_s: float  # seconds of the source, as the two below
    peak_s: float  # when it is strongest
    end_s: float
    energy: float  # mean camera motion of a regime, in px/frame; mean probability of an interaction
    kind: str  # regime | interaction
    name: str


def smooth(values: np.ndarray, times_s: np.ndarray, window_s: float = _SMOOTH_S) -> np.ndarray:
    """Return the running mean over about `window_s`, with the ends repeated, of values [P, ...] at times [P]."""
    if len(values) < 3:
        return values
    step = float(np.median(np.diff(times_s)))
    half = max(0, round(window_s / step / 2))
    padded = np.concatenate([np.repeat(values[:1], half, 0), values, np.repeat(values[-1:], half, 0)])
    kernel = np.ones(2 * half + 1) / (2 * half + 1)
    return np.apply_along_axis(lambda column: np.convolve(column, kernel, "valid"), 0, padded)


# Names of the negative and the positive rate, in the order of `FlowMotion.rates`.
_REGIMES = (("turn_left", "turn_right"), ("look_down", "look_up"), ("back", "forward"), ("strafe_left", "strafe_right"))


def regime_names(motion: FlowMotion, times_s: np.ndarray, fps: float, settings: RegimeSettings) -> list[str]:
    """Return the regime of each pair, none shorter than `min_s`; see `pair_regimes`."""
    return merge_short_runs(pair_regimes(motion, times_s, fps, settings), times_s, settings.min_s)


def pair_regimes(motion: FlowMotion, times_s: np.ndarray, fps: float, settings: RegimeSettings) -> list[str]:
    """Return the regime of each pair, however short.

    A turn takes precedence over looking up or down, and both over walking and strafing, of which the stronger counts.
    """
    if not len(times_s):
        return []
    rates = smooth(motion.rates() * fps, times_s)
    limits = np.array([settings.min_turn_px_s, settings.min_look_px_s, settings.min_walk_px_s, settings.min_strafe_px_s])
    return [_regime_name(rate, rate / limits) for rate in rates]


def _regime_name(rate: np.ndarray, ratio: np.ndarray) -> str:
    over = np.abs(ratio)
    kind = 0 if over[0] >= 1 else 1 if over[1] >= 1 else 2 + int(over[3] > over[2])
    return _REGIMES[kind][int(rate[kind] > 0)] if over[kind] >= 1 else "still"


def merge_short_runs(names: list[str], times_s: np.ndarray, min_s: float) -> list[str]:
    """Rename a run shorter than `min_s` to the run before it (the first to the run after)."""
    merged = list(names)
    for start, end in _runs(merged):
        last = times_s[min(end, len(times_s) - 1)]
        if last - times_s[start] < min_s:
            neighbour = merged[start - 1] if start else (merged[end] if end < len(merged) else merged[start])
            merged[start:end] = [neighbour] * (end - start)
    return merged


def _runs(names: list[str]) -> list[tuple[int, int]]:
    """Return the index ranges [start, end) of equal neighbours."""
    edges = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def regime_spans(names: list[str], times_s: np.ndarray, energy: np.ndarray, end_s: float) -> list[ActionSpan]:
    """Return a span for each run of equal names, except standing still. Its peak and its mean come from energy [P]."""
    spans = []
    for start, end in _runs(names):
        if names[start] != "still":
            peak = start + int(np.argmax(energy[start:end]))
            until = float(times_s[end]) if end < len(times_s) else end_s
            strength = float(energy[start:end].mean())
            spans.append(ActionSpan(float(times_s[start]), float(times_s[peak]), until, strength, "regime", names[start]))
    return spans


def clip_to(spans: list[ActionSpan], start_s: float, end_s: float) -> list[ActionSpan]:
    """Return the parts of spans inside [start_s, end_s]. A peak outside moves to the nearer end."""
    inside = [s for s in spans if s.start_s < end_s and s.end_s > start_s]
    return [
        s._replace(start_s=max(s.start_s, start_s), peak_s=min(max(s.peak_s, start_s), end_s), end_s=min(s.end_s, end_s))
        for s in inside
    ]


@dataclass(frozen=True)
class InteractionSettings:
    """When an interaction is detected, from its probability at each tick."""

    min_peak: float = 0.3  # a span's highest probability must exceed this
    min_edge: float = 0.15  # a span reaches as far as the probability exceeds this
    max_gap_s: float = 0.3  # seconds; spans with a shorter gap between them are joined
    min_s: float = 0.15  # seconds; shorter spans are dropped
    pad_s: float = 0.1  # seconds added at both ends, because a tick locates them no better
    # How far a source may be from the detector's training set; further ones are judged by flow alone. 1 is as far as the set's
    # farthest 1 %. Other maps of the same games have 0.3 to 0.9, other games 0.5 to 1.5.
    max_distance: float = 1.5
    # How far a clip may be for it to be known that nothing happens in it: on games that the detector was not trained on, it
    # misses a third of what happens. Of 777 clips of games that were left out, five with an event were called quiet within it.
    max_quiet_distance: float = 0.6
    min_seen: float = 0.2  # certainty (0-1) under which an interaction counts as nothing that happens
    min_kind: float = 0.5  # probability from which an interaction is named: a door, a shot; otherwise it is an event
    min_confidence: float = 0.6  # 0-1; a clip's interactions are unknown where the detector is less sure of them


def interaction_spans(times_s: np.ndarray, event: np.ndarray, settings: InteractionSettings, end_s: float) -> list[ActionSpan]:
    """Return the spans of interactions, from their probability [T] at times [T]. A span's energy is its mean probability."""
    spans: list[ActionSpan] = []
    names = ["event" if probability > settings.min_edge else "" for probability in event]
    for start, end in _runs(names):
        if names[start] and event[start:end].max() > settings.min_peak:
            until = float(times_s[end]) if end < len(times_s) else end_s
            peak = start + int(np.argmax(event[start:end]))
            span = ActionSpan(
                float(times_s[start]), float(times_s[peak]), until, float(event[start:end].mean()), "interaction", "event"
            )
            near = spans and span.start_s - spans[-1].end_s < settings.max_gap_s
            spans[-1:] = [_join(spans[-1], span)] if near else [*spans[-1:], span]
    return _pad([span for span in spans if span.end_s - span.start_s >= settings.min_s], settings.pad_s, times_s, end_s)


def _pad(spans: list[ActionSpan], pad_s: float, times_s: np.ndarray, end_s: float) -> list[ActionSpan]:
    """Lengthen spans at both ends, but not beyond the source or into each other."""
    starts = [max(span.start_s - pad_s, float(times_s[0])) for span in spans]
    ends = [min(span.end_s + pad_s, following) for span, following in zip(spans, [*starts[1:], end_s], strict=False)]
    return [span._replace(start_s=a, end_s=b) for span, a, b in zip(spans, starts, ends, strict=True)]


def _join(one: ActionSpan, other: ActionSpan) -> ActionSpan:
    lengths = one.end_s - one.start_s, other.end_s - other.start_s
    energy = float(np.average([one.energy, other.energy], weights=lengths))
    peak = max(one, other, key=lambda span: span.energy).peak_s
    return one._replace(end_s=other.end_s, energy=energy, peak_s=peak)


def certainty(energy: float, length_s: float) -> float:
    """Return how certain an interaction is, 0-1: its mean probability over at least 0.5 s."""
    return energy * min(1.0, length_s / 0.5)


def unusual_motion(motion: FlowMotion, times_s: np.ndarray) -> np.ndarray:
    """Return how unusual the residual motion is for this source, relative to the camera's motion: 0-1 [P].

    This is the fallback rule for interactions. It needs no training, but on first-person games it is little better than chance
    (`bench/partition.py` measures it).
    """
    if not len(times_s):
        return np.zeros(0)
    ratio = smooth(motion.object / (motion.camera + 0.5), times_s)
    usual, extreme = np.quantile(ratio, [0.8, 0.99])
    return np.clip((ratio - usual) / max(extreme - usual, 1e-6), 0, 1)


def most_likely_sequence(regime_TK: np.ndarray, names: Sequence[str], switch: float = 1.0) -> list[str]:
    """Return the most likely sequence of regimes (Viterbi) for T ticks with K probabilities each.

    Each change of regime costs `switch` nats.
    """
    logs = np.log(regime_TK + 1e-4)
    best, came_from = np.zeros(logs.shape[1]), np.zeros(logs.shape, np.int64)
    for tick, log in enumerate(logs):
        other = int(np.argmax(best))
        changes = best[other] - switch > best
        came_from[tick] = np.where(changes, other, np.arange(len(best)))
        best = np.maximum(best, best[other] - switch) + log
    path = [int(np.argmax(best))]
    for tick in range(len(logs) - 1, 0, -1):
        path.append(int(came_from[tick][path[-1]]))
    return [names[k] for k in path[::-1]][: len(logs)]
