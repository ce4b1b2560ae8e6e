"""What happens in a source and what the player does with the camera: the learned detector where it may be trusted, else a rule.

A source that looks nothing like what the detector was trained on (its median distance exceeds the limit: a 2-D game, a menu, a
film) is judged by the flow alone: regimes by thresholds on the camera's motion, interactions by unusual motion beside it.
"""

from dataclasses import dataclass, field

import numpy as np

from curation.actions import learned
from curation.actions import spans as action
from curation.actions.spans import ActionSpan, InteractionSettings, RegimeSettings
from curation.partition.clip_spans import unrest
from curation.partition.scan import Signals

DETECTORS = ("auto", "learned", "flow")


@dataclass(frozen=True)
class ActionSettings:
    """How actions are found: `auto` takes the learned detector where a source is like its training set, else flow alone."""

    detector: str = "auto"
    regimes: RegimeSettings = field(default_factory=RegimeSettings)
    interactions: InteractionSettings = field(default_factory=InteractionSettings)

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, not {self.detector!r}")


@dataclass(frozen=True)
class Happenings:
    """event [T]: how likely something happens at times_s [T]; spans: regimes and interactions in order of their start;
    detector: learned | flow; distance: how far the source is from the training set, 1 at its farthest 1 %.
    """

    times_s: np.ndarray
    event: np.ndarray
    spans: list[ActionSpan]
    detector: str
    distance: float


def happenings(signals: Signals, settings: ActionSettings) -> Happenings:
    """All actions of a source."""
    reading = read(signals)
    distance = float(np.median(reading.distance)) if len(reading.distance) else float("inf")
    known = distance <= settings.interactions.max_distance
    if settings.detector == "learned" or (settings.detector == "auto" and known):
        times_s, event, names = reading.times_s, reading.event, _learned_regimes(signals, reading, settings.regimes)
        which = "learned"
    else:
        times_s, event = signals.pair_times_s, action.unusual(signals.motion, signals.pair_times_s)
        names = action.pair_regimes(signals.motion, times_s, signals.fps, settings.regimes)
        which = "flow"
    energy = np.interp(times_s, signals.pair_times_s, signals.motion.camera) if len(times_s) else times_s
    spans: list[ActionSpan] = []
    for part in signals.segments:  # what is done or happens does not go on over a hole in time
        inside = slice(*np.searchsorted(times_s, [part.start_s, part.end_s]))
        course = action.settled(names[inside], times_s[inside], settings.regimes.min_s)
        spans += action.regime_spans(course, times_s[inside], energy[inside], part.end_s)
        spans += action.interaction_spans(times_s[inside], event[inside], settings.interactions, part.end_s)
    return Happenings(times_s, event, sorted(spans), which, distance)


def read(signals: Signals) -> learned.Reading:
    """Run the learned detector over each stretch of a source, and join the readings in order."""
    parts = [slice(*np.searchsorted(signals.pair_frame, [part.first, part.last])) for part in signals.segments]
    return learned.joined(
        [learned.read(signals.pair_times_s[part], signals.cells[part], signals.looks[part], signals.fps) for part in parts]
    )


def _learned_regimes(signals: Signals, reading: learned.Reading, settings: RegimeSettings) -> list[str]:
    """The likeliest course; looking up and down, which no recording of the training set shows, by the camera's motion."""
    names = action.likeliest(reading.regime, learned.REGIMES)
    plain = action.regime_names(signals.motion, signals.pair_times_s, signals.fps, settings)
    at = np.searchsorted(signals.pair_times_s, reading.times_s - 1e-6).clip(0, max(len(plain) - 1, 0))
    return [plain[k] if plain[k].startswith("look") else name for k, name in zip(at, names, strict=True)]


def boundary_costs(signals: Signals, found: Happenings) -> tuple[np.ndarray, np.ndarray]:
    """Times of the frames at which a clip may begin, ten a second, and how bad each is; see `spans.unrest`."""
    if not len(found.times_s):
        return found.times_s, found.event
    motion = signals.motion
    moves = action.smooth(motion.camera + motion.object, signals.pair_times_s)
    at = np.unique(np.searchsorted(signals.times_s, found.times_s - 1e-6).clip(0, len(signals.times_s) - 1))
    times_s = signals.times_s[at]
    event = _nearby(np.interp(times_s, found.times_s, found.event))
    return times_s, unrest(np.interp(times_s, signals.pair_times_s, moves), event)


def _nearby(event: np.ndarray) -> np.ndarray:
    """The highest probability within two ticks: where an interaction begins is known to a tenth of a second or two."""
    padded = np.pad(event, 2, mode="edge")
    return np.max([padded[shift : shift + len(event)] for shift in range(5)], axis=0)
