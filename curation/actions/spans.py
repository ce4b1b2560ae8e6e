"""What the player does with the camera, from its motion (paper section 3.4: action boundaries): signal in, spans out; all pure.

A regime is a stretch of one kind of camera motion: still, turning, looking up or down, walking, strafing. Its start and end
are action boundaries. An interaction is a stretch in which something happens on screen: a door, a shot, a tool in hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from curation.partition.optical_flow import CameraMotion

_SMOOTH_S = 0.3


@dataclass(frozen=True)
class RegimeSettings:
    """When the camera counts as doing something. Rates are px/s at 320 wide; with a 90 degree view 320 px is 90 degrees."""

    turn_px_s: float = 90.0
    look_px_s: float = 60.0
    walk_px_s: float = 50.0
    strafe_px_s: float = 60.0
    min_s: float = 0.3


class ActionSpan(NamedTuple):
    """One action: when it starts, is strongest, ends (s of the source); mean motion; regime | interaction; its name."""

    start_s: float
    peak_s: float
    end_s: float
    energy: float
    kind: str
    name: str


def smooth(values: np.ndarray, times_s: np.ndarray, window_s: float = _SMOOTH_S) -> np.ndarray:
    """Running mean over about `window_s`, the ends held; values [P, ...] at times [P]."""
    if len(values) < 3:
        return values
    step = float(np.median(np.diff(times_s)))
    half = max(0, round(window_s / step / 2))
    padded = np.concatenate([np.repeat(values[:1], half, 0), values, np.repeat(values[-1:], half, 0)])
    kernel = np.ones(2 * half + 1) / (2 * half + 1)
    return np.apply_along_axis(lambda column: np.convolve(column, kernel, "valid"), 0, padded)


_KINDS = (("turn_left", "turn_right"), ("look_down", "look_up"), ("back", "forward"), ("strafe_left", "strafe_right"))


def regime_names(motion: CameraMotion, times_s: np.ndarray, fps: float, settings: RegimeSettings) -> list[str]:
    """The regime of each pair, none shorter than `min_s`; see `pair_regimes`."""
    return settled(pair_regimes(motion, times_s, fps, settings), times_s, settings.min_s)


def pair_regimes(motion: CameraMotion, times_s: np.ndarray, fps: float, settings: RegimeSettings) -> list[str]:
    """Name what the camera does in each pair, however briefly.

    A turn outranks looking up or down, both outrank the feet; of the feet the stronger counts.
    """
    if not len(times_s):
        return []
    rates = smooth(motion.rates() * fps, times_s)
    limits = np.array([settings.turn_px_s, settings.look_px_s, settings.walk_px_s, settings.strafe_px_s])
    return [_name(rate, rate / limits) for rate in rates]


def _name(rate: np.ndarray, ratio: np.ndarray) -> str:
    over = np.abs(ratio)
    kind = 0 if over[0] >= 1 else 1 if over[1] >= 1 else 2 + int(over[3] > over[2])
    return _KINDS[kind][int(rate[kind] > 0)] if over[kind] >= 1 else "still"


def settled(names: list[str], times_s: np.ndarray, min_s: float) -> list[str]:
    """Give a run shorter than `min_s` to the run before it (the first to the one after)."""
    left = list(names)
    for start, end in _runs(left):
        last = times_s[min(end, len(times_s) - 1)]
        if last - times_s[start] < min_s:
            heir = left[start - 1] if start else (left[end] if end < len(left) else left[start])
            left[start:end] = [heir] * (end - start)
    return left


def _runs(names: list[str]) -> list[tuple[int, int]]:
    """Index ranges [start, end) of equal neighbours."""
    edges = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def regime_spans(names: list[str], times_s: np.ndarray, energy: np.ndarray, end_s: float) -> list[ActionSpan]:
    """One span a run of equal names, standing still left out; energy [P] gives each span its peak and its mean."""
    spans = []
    for start, end in _runs(names):
        if names[start] != "still":
            peak = start + int(np.argmax(energy[start:end]))
            until = float(times_s[end]) if end < len(times_s) else end_s
            strength = float(energy[start:end].mean())
            spans.append(ActionSpan(float(times_s[start]), float(times_s[peak]), until, strength, "regime", names[start]))
    return spans


def clip_spans(spans: list[ActionSpan], start_s: float, end_s: float) -> list[ActionSpan]:
    """The parts of spans that lie inside a clip; a peak outside moves to the nearer end."""
    inside = [s for s in spans if s.start_s < end_s and s.end_s > start_s]
    return [
        s._replace(start_s=max(s.start_s, start_s), peak_s=min(max(s.peak_s, start_s), end_s), end_s=min(s.end_s, end_s))
        for s in inside
    ]


@dataclass(frozen=True)
class InteractionSettings:
    """When something counts as happening. A span begins where the probability exceeds `start`, reaches as far as it exceeds
    `edge`, takes in gaps shorter than `bridge_s`; a shorter one than `min_s` is none; both
    ends are put `pad_s` further out, since a tick tells them no better. `max_distance`: how far a source may be
    from what the detector was trained on (1: the farthest 1 % of that) before the plain rule judges it instead. Other
    maps of the same game have 0.4 to 0.7, films about 1, another game 0.8 to 1.4.
    """

    start: float = 0.3
    edge: float = 0.05
    bridge_s: float = 0.3
    min_s: float = 0.15
    pad_s: float = 0.1
    max_distance: float = 1.0


def interaction_spans(times_s: np.ndarray, event: np.ndarray, settings: InteractionSettings, end_s: float) -> list[ActionSpan]:
    """Stretches in which something happens, from its probability [T] at times [T]; energy is its mean over the span."""
    spans: list[ActionSpan] = []
    names = ["event" if probability > settings.edge else "" for probability in event]
    for start, end in _runs(names):
        if names[start] and event[start:end].max() > settings.start:
            until = float(times_s[end]) if end < len(times_s) else end_s
            peak = start + int(np.argmax(event[start:end]))
            found = ActionSpan(
                float(times_s[start]), float(times_s[peak]), until, float(event[start:end].mean()), "interaction", "event"
            )
            near = spans and found.start_s - spans[-1].end_s < settings.bridge_s
            spans[-1:] = [_joined(spans[-1], found)] if near else [*spans[-1:], found]
    return _padded([span for span in spans if span.end_s - span.start_s >= settings.min_s], settings.pad_s, times_s, end_s)


def _padded(spans: list[ActionSpan], pad_s: float, times_s: np.ndarray, end_s: float) -> list[ActionSpan]:
    """Spans made longer at both ends, inside the source and not into each other."""
    starts = [max(span.start_s - pad_s, float(times_s[0])) for span in spans]
    ends = [min(span.end_s + pad_s, following) for span, following in zip(spans, [*starts[1:], end_s], strict=False)]
    return [span._replace(start_s=a, end_s=b) for span, a, b in zip(spans, starts, ends, strict=True)]


def _joined(one: ActionSpan, other: ActionSpan) -> ActionSpan:
    lengths = one.end_s - one.start_s, other.end_s - other.start_s
    energy = float(np.average([one.energy, other.energy], weights=lengths))
    peak = max(one, other, key=lambda span: span.energy).peak_s
    return one._replace(end_s=other.end_s, energy=energy, peak_s=peak)


def unusual(motion: CameraMotion, times_s: np.ndarray) -> np.ndarray:
    """The plain rule, 0-1 [P]: how far motion beside the camera's, for what moves at all, exceeds what the source usually has.

    It knows of no game; on first-person games it is little better than chance (`bench/partition.py` measures it).
    """
    if not len(times_s):
        return np.zeros(0)
    ratio = smooth(motion.object / (motion.camera + 0.5), times_s)
    usual, most = np.quantile(ratio, [0.8, 0.99])
    return np.clip((ratio - usual) / max(most - usual, 1e-6), 0, 1)


def likeliest(regime_TK: np.ndarray, names: Sequence[str], switch: float = 1.0) -> list[str]:
    """The likeliest course of regimes, of T ticks with K probabilities each, if each change costs `switch` (in nats)."""
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
