"""Detect actions in a source: what the player does with the camera, and interactions. By the learned detector, else by a rule.

A source that is far from the detector's training set (its median distance exceeds the limit: a 2-D game, a menu, a film) is
judged by optical flow alone: regimes by thresholds on the camera's motion, interactions by unusual motion of everything else.
"""

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from curation.actions import learned, spans
from curation.actions.spans import ActionSpan, InteractionSettings, RegimeSettings
from curation.partition.clip_spans import boundary_cost
from curation.partition.scan import Signals

DETECTORS = ("auto", "learned", "flow")


@dataclass(frozen=True)
class ActionSettings:
    """How actions are detected."""

    detector: str = "auto"  # auto | learned | flow; auto uses the learned detector where a source is like its training set
    regimes: RegimeSettings = field(default_factory=RegimeSettings)  # from which rates the camera counts as moving
    interactions: InteractionSettings = field(default_factory=InteractionSettings)  # when an interaction is detected

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, not {self.detector!r}")


@dataclass(frozen=True)
class Actions:
    """The actions of a source."""

    times_s: np.ndarray  # [T]
    event_probability: np.ndarray  # [T], of an interaction
    spans: list[ActionSpan]  # regimes and interactions, by their start
    detector: str  # learned | flow: the one that was used
    distance: float  # from the training set; 1 is as far as its farthest 1 %


def detect_actions(signals: Signals, settings: ActionSettings) -> Actions:
    """Detect all actions of a source."""
    prediction = predict(signals)
    distance = float(np.median(prediction.distance)) if len(prediction.distance) else float("inf")
    is_familiar = distance <= settings.interactions.max_distance
    if settings.detector == "learned" or (settings.detector == "auto" and is_familiar):
        times_s, event = prediction.times_s, prediction.event_probability
        names = _learned_regimes(signals, prediction, settings.regimes)
        detector = "learned"
    else:
        times_s, event = signals.pair_times_s, spans.unusual_motion(signals.motion, signals.pair_times_s)
        names = spans.pair_regimes(signals.motion, times_s, signals.fps, settings.regimes)
        detector = "flow"
    energy = np.interp(times_s, signals.pair_times_s, signals.motion.camera) if len(times_s) else times_s
    actions: list[ActionSpan] = []
    for segment in signals.segments:  # no action continues across a gap in time
        inside = slice(*np.searchsorted(times_s, [segment.start_s, segment.end_s]))
        regimes = spans.merge_short_runs(names[inside], times_s[inside], settings.regimes.min_s)
        actions += spans.regime_spans(regimes, times_s[inside], energy[inside], segment.end_s)
        actions += spans.interaction_spans(times_s[inside], event[inside], settings.interactions, segment.end_s)
    return Actions(times_s, event, sorted(actions), detector, distance)


_predictions: WeakKeyDictionary[Signals, learned.Prediction] = WeakKeyDictionary()


def predict(signals: Signals) -> learned.Prediction:
    """Run the learned detector on each segment of a source, and concatenate its predictions. They are cached with the scan."""
    if signals not in _predictions:
        _predictions[signals] = _predict(signals)
    return _predictions[signals]


def _predict(signals: Signals) -> learned.Prediction:
    # The network was trained on DIS flow, and takes RAFT's for other motion (docs/flow.md).
    cells = signals.cells if signals.dis_cells is None else signals.dis_cells
    pairs = [slice(*np.searchsorted(signals.pair_frame, [part.first, part.last])) for part in signals.segments]
    return learned.concatenate(
        [learned.predict(signals.pair_times_s[part], cells[part], signals.change_cells[part], signals.fps) for part in pairs]
    )


def _learned_regimes(signals: Signals, prediction: learned.Prediction, settings: RegimeSettings) -> list[str]:
    """Return the most likely regimes. Looking up and down, which the training set lacks, is taken from the camera's motion."""
    names = spans.most_likely_sequence(prediction.regime_probability, learned.REGIMES)
    by_flow = spans.regime_names(signals.motion, signals.pair_times_s, signals.fps, settings)
    at = np.searchsorted(signals.pair_times_s, prediction.times_s - 1e-6).clip(0, max(len(by_flow) - 1, 0))
    return [by_flow[k] if by_flow[k].startswith("look") else name for k, name in zip(at, names, strict=True)]


def boundary_costs(signals: Signals, actions: Actions) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of the frames at which a clip may begin, ten a second, and the `boundary_cost` of each."""
    if not len(actions.times_s):
        return actions.times_s, actions.event_probability
    motion = signals.motion
    total = spans.smooth(motion.camera + motion.object, signals.pair_times_s)
    at = np.unique(np.searchsorted(signals.times_s, actions.times_s - 1e-6).clip(0, len(signals.times_s) - 1))
    times_s = signals.times_s[at]
    event = _highest_nearby(np.interp(times_s, actions.times_s, actions.event_probability))
    return times_s, boundary_cost(np.interp(times_s, signals.pair_times_s, total), event)


def _highest_nearby(event: np.ndarray) -> np.ndarray:
    """Return the highest probability within two ticks: the start of an interaction is known to a tenth of a second or two."""
    padded = np.pad(event, 2, mode="edge")
    return np.max([padded[shift : shift + len(event)] for shift in range(5)], axis=0)
