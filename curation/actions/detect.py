"""Detect actions in a source: what the player does with the camera, and interactions. By the learned detector, else by a rule.

A source that is far from the detector's training set (its median distance exceeds the limit: a 2-D game, a menu, a film) is
judged by optical flow alone: regimes by thresholds on the camera's motion, interactions by unusual motion of everything else.
What the learned detector says of a clip has a confidence. Where that is too low, the clip's interactions are unknown. So they
are where it sees none in a clip that is unlike the training set.
"""

from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from curation.actions import learned, spans
from curation.actions.confidence import clip_confidence
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
    prediction: learned.Prediction | None = None  # of the network

    def spans_within(self, start_s: float, end_s: float) -> list[ActionSpan]:
        """Return the spans that overlap an interval, cut to it."""
        first_s, last_s = self._span_bounds_s
        return spans.clip_to([self.spans[k] for k in np.flatnonzero((first_s < end_s) & (last_s > start_s))], start_s, end_s)

    @cached_property
    def _span_bounds_s(self) -> np.ndarray:
        """The start and the end of each span, [2, S]."""
        return np.array([(span.start_s, span.end_s) for span in self.spans]).reshape(-1, 2).T

    def confidence(self, start_s: float, end_s: float) -> float | None:
        """Return how probable it is that the interactions of a clip are right, 0-1. None if they are judged by flow alone."""
        if self.detector != "learned" or self.prediction is None:
            return None
        return clip_confidence(self.prediction, start_s, end_s, *learned.shipped_detector().confidence_rule)

    def distance_of(self, start_s: float, end_s: float) -> float:
        """Return how far a clip is from the training set, or the source where the clip has no tick."""
        if self.prediction is None:
            return self.distance
        distance = self.prediction.distance[self.prediction.ticks_within(start_s, end_s)]
        return float(np.median(distance)) if len(distance) else self.distance


_actions: WeakKeyDictionary[Signals, dict[ActionSettings, Actions]] = WeakKeyDictionary()


def detect_actions(signals: Signals, settings: ActionSettings) -> Actions:
    """Detect all actions of a source.

    The result is cached with the scan, because operators get one clip at a time, and detection on hours of video takes seconds.
    """
    by_settings = _actions.setdefault(signals, {})
    if settings not in by_settings:
        by_settings[settings] = _detect(signals, settings)
    return by_settings[settings]


def _detect(signals: Signals, settings: ActionSettings) -> Actions:
    prediction = predict(signals)
    distance = float(np.median(prediction.distance)) if len(prediction.distance) else float("inf")
    is_familiar = distance <= settings.interactions.max_distance
    if settings.detector == "learned" or (settings.detector == "auto" and is_familiar):
        times_s, event = prediction.times_s, prediction.event_probability
        names = spans.most_likely_sequence(prediction.regime_probability, learned.REGIMES)
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
        events = spans.interaction_spans(times_s[inside], event[inside], settings.interactions, segment.end_s)
        actions += [_named(span, prediction, settings.interactions) for span in events] if detector == "learned" else events
    return Actions(times_s, event, sorted(actions), detector, distance, prediction)


def _named(span: ActionSpan, prediction: learned.Prediction, settings: InteractionSettings) -> ActionSpan:
    """Name an interaction by its most probable kind, where that is probable enough."""
    probability = prediction.kind_probability[prediction.ticks_within(span.start_s, span.end_s)]
    if not len(probability):
        return span
    highest = probability.max(0)
    kind = int(np.argmax(highest))
    return span._replace(name=learned.KINDS[kind]) if highest[kind] >= settings.min_kind else span


def unknown_reason(actions: Actions, start_s: float, end_s: float, settings: InteractionSettings) -> str | None:
    """Return why the interactions of a clip are unknown, or None if they are known.

    That nothing happens is known only of footage like the training set. What is seen on other games counts if it is sure.
    """
    confidence = actions.confidence(start_s, end_s)
    if confidence is None:
        return f"the detector does not know such footage: distance {actions.distance:.2f} > {settings.max_distance:g}"
    if confidence < settings.min_confidence:
        return f"the detector is not sure: confidence {confidence:.2f} < {settings.min_confidence:g}"
    inside = [span for span in actions.spans_within(start_s, end_s) if span.kind == "interaction"]
    seen = any(spans.certainty(span.energy, span.end_s - span.start_s) >= settings.min_seen for span in inside)
    distance = actions.distance_of(start_s, end_s)
    if not seen and distance > settings.max_quiet_distance:
        limit = settings.max_quiet_distance
        return f"nothing is seen to happen, but the detector hardly knows such footage: distance {distance:.2f} > {limit:g}"
    return None


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


def boundary_costs(signals: Signals, actions: Actions) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of the frames at which a clip may begin, ten a second, and the `boundary_cost` of each."""
    if not len(actions.times_s):
        return actions.times_s, actions.event_probability
    motion = signals.motion
    total = spans.smooth(motion.camera + motion.object, signals.pair_times_s)
    at = np.unique(np.searchsorted(signals.times_s, actions.times_s - 1e-6).clip(0, len(signals.times_s) - 1))
    times_s = signals.times_s[at]
    event = high_probability_nearby(np.interp(times_s, actions.times_s, actions.event_probability))
    return times_s, boundary_cost(np.interp(times_s, signals.pair_times_s, total), event)


def high_probability_nearby(event: np.ndarray) -> np.ndarray:
    """Return the highest probability within two ticks: the start of an interaction is known to a tenth of a second or two."""
    padded = np.pad(event, 2, mode="edge")
    return np.max([padded[shift : shift + len(event)] for shift in range(5)], axis=0)
