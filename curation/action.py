"""What the player does with the camera, from its motion (paper section 3.4: action boundaries): signal in, spans out; all pure.

A regime is a stretch of one kind of camera motion: still, turning, looking up or down, walking, strafing. Its start and end
are action boundaries. Clips are best cut where the picture is quiet, which `quiet_instant` finds near a wanted time.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from curation.flow import CameraMotion

_SMOOTH_S = 0.3
# Preference for the wanted time over a quieter one a second away, px/frame: settles ties, does not outvote a turn.
_PULL = 0.05


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
    """The regime of each pair. A turn outranks looking up or down, both outrank the feet; of the feet the stronger counts."""
    if not len(times_s):
        return []
    rates = smooth(motion.rates() * fps, times_s)
    limits = np.array([settings.turn_px_s, settings.look_px_s, settings.walk_px_s, settings.strafe_px_s])
    return _without_short([_name(rate, rate / limits) for rate in rates], times_s, settings.min_s)


def _name(rate: np.ndarray, ratio: np.ndarray) -> str:
    over = np.abs(ratio)
    kind = 0 if over[0] >= 1 else 1 if over[1] >= 1 else 2 + int(over[3] > over[2])
    return _KINDS[kind][int(rate[kind] > 0)] if over[kind] >= 1 else "still"


def _without_short(names: list[str], times_s: np.ndarray, min_s: float) -> list[str]:
    """Give a run shorter than `min_s` to the run before it (the first to the one after)."""
    settled = list(names)
    for start, end in _runs(settled):
        last = times_s[min(end, len(times_s) - 1)]
        if last - times_s[start] < min_s:
            heir = settled[start - 1] if start else (settled[end] if end < len(settled) else settled[start])
            settled[start:end] = [heir] * (end - start)
    return settled


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


def quiet_instant(times_s: np.ndarray, energy: np.ndarray, low_s: float, high_s: float, nominal_s: float) -> float:
    """The time in [low, high] at which the smoothed energy [P] is least; the wanted time where nothing was measured."""
    near = np.flatnonzero((times_s >= low_s) & (times_s <= high_s))
    if not len(near):
        return nominal_s
    cost = smooth(energy, times_s)[near] + _PULL * np.abs(times_s[near] - nominal_s)
    return float(times_s[near[int(np.argmin(cost))]])
