"""Judge detectors of interactions and regimes on recordings with truth, engine by engine, beside each other.

    python -m bench.interactions --weights today=old.npz --weights new=curation/actions/interactions.npz REC.mp4 ...
    python -m bench.interactions --weights today=old.npz --left-out doom=a.npz --left-out minetest=b.npz REC.mp4 ...

`--left-out` weights judge the recordings of their engine only: the one that they were not trained on. Each recording needs its
truth file. Measurements are stored next to it (`.ticks.npz`).
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.labelled_ticks import LabelledTicks, labelled_ticks
from bench.machine import describe
from bench.measures import Hits, auc, count_contained, match_instants
from curation.actions import spans
from curation.actions.confidence import clip_confidence, clip_features
from curation.actions.learned import KINDS, REGIMES, Detector, Prediction
from curation.actions.spans import ActionSpan, InteractionSettings, RegimeSettings
from curation.captions.caption import ClipMeasurements, MeasuredEvent
from curation.captions.interaction import InteractiveSettings, event_score
from synth.doom import truth
from synth.engines.labels import Labels, read_labels

_WITHIN_S, _CLIP_S, _MIN_VISIBLE_S = 0.25, 6.0, 0.2
_EDGE = InteractionSettings.min_edge / InteractionSettings.min_peak  # where a span ends, as a share of its lowest peak
_PEAKS = (0.02, 0.04, 0.06, 0.08, *np.linspace(0.1, 0.95, 18))
_MAX_TIME = 2.5  # times the time of the events


@dataclass(frozen=True)
class Recording:
    """A recording: its measurements and its truth."""

    path: Path
    ticks: LabelledTicks
    labels: Labels

    @property
    def end_s(self) -> float:
        return len(self.labels.event) / self.labels.truth.fps

    def true_events(self) -> list[tuple[float, float]]:
        fps = self.labels.truth.fps
        return [(start / fps, end / fps) for start, end in truth.runs(self.labels.event)]


@dataclass(frozen=True)
class ClipVerdict:
    """What a detector says of a clip of six seconds, and what is true."""

    engine: str
    true: bool
    score: float
    confidence: float
    features: np.ndarray
    distance: float = 0.0  # from the training set
    start_s: float = 0.0  # of the clip


def load(path: Path) -> Recording:
    return Recording(path, labelled_ticks(path), read_labels(path.with_suffix(".jsonl")))


def predict(detector: Detector, one: Recording) -> Prediction:
    """Run a detector on a recording's ticks."""
    return detector.classify(one.ticks.times_s, *detector.encode(one.ticks.planes.astype(np.float32)))


def clip_verdicts(detector: Detector, one: Recording, prediction: Prediction) -> Iterator[ClipVerdict]:
    """Yield the verdict for each clip of six seconds, but for those without an event in which something else may be seen."""
    found = interaction_spans(prediction, InteractionSettings(), one.end_s)
    fps = one.labels.truth.fps
    for number in range(max(1, round(one.end_s / _CLIP_S))):
        start_s, end_s = number * _CLIP_S, min((number + 1) * _CLIP_S, one.end_s)
        inside = spans.clip_to(found, start_s, end_s)
        events = tuple(MeasuredEvent(s.start_s - start_s, s.peak_s - start_s, s.end_s - start_s, s.energy) for s in inside)
        within = slice(round(start_s * fps), round(end_s * fps))
        visible = one.labels.event[within].sum() >= _MIN_VISIBLE_S * fps
        if not visible and (~one.labels.known[within]).sum() >= _MIN_VISIBLE_S * fps:
            continue
        yield ClipVerdict(
            one.labels.engine,
            bool(visible),
            event_score(ClipMeasurements(end_s - start_s, events=events)),
            clip_confidence(prediction, start_s, end_s, *detector.confidence_rule),
            clip_features(prediction, start_s, end_s),
            float(np.median(prediction.distance[(prediction.times_s >= start_s - 1e-6) & (prediction.times_s < end_s)])),
            start_s,
        )


def interaction_spans(prediction: Prediction, settings: InteractionSettings, end_s: float) -> list[ActionSpan]:
    return spans.interaction_spans(prediction.times_s, prediction.event_probability, settings, end_s)


def recall_within_time(recordings: Sequence[Recording], predictions: Sequence[Prediction]) -> tuple[float, float]:
    """Return the largest share of events inside a span, over thresholds whose spans take at most 2.5 times the events' time.

    The second number is how many times the events' time the spans of that threshold take.
    """
    needed = sum(end - start for one in recordings for start, end in one.true_events())
    count = sum(len(one.true_events()) for one in recordings)
    best = (0.0, 0.0)
    for peak in _PEAKS:
        settings = InteractionSettings(min_peak=float(peak), min_edge=float(peak) * _EDGE)
        length, hits = 0.0, 0
        for one, prediction in zip(recordings, predictions, strict=True):
            found = [(s.start_s, s.end_s) for s in interaction_spans(prediction, settings, one.end_s)]
            length += sum(end - start for start, end in found)
            hits += count_contained(one.true_events(), found, _WITHIN_S)
        if length <= _MAX_TIME * needed:
            best = max(best, (hits / max(1, count), length / max(needed, 1e-6)))
    return best


def regime_figures(one: Recording, prediction: Prediction) -> tuple[Hits, float]:
    """Return how the changes of regime match the true ones, and the share of time with the right regime."""
    names = spans.most_likely_sequence(prediction.regime_probability, REGIMES)
    names = spans.merge_short_runs(names, prediction.times_s, RegimeSettings().min_s)
    changes = [float(prediction.times_s[k]) for k in range(1, len(names)) if names[k] != names[k - 1]]
    true, fps = one.labels.regimes, one.labels.truth.fps
    true_changes = [k / fps for k in range(1, len(true)) if true[k] != true[k - 1]]
    at = np.minimum((prediction.times_s * fps).astype(int), len(true) - 1)
    right = np.mean([name == true[k] for name, k in zip(names, at, strict=True)])
    return match_instants(changes, true_changes, _WITHIN_S), float(right)


def engine_lines(title: str, recordings: Sequence[Recording], detector: Detector) -> Iterator[str]:
    """Yield the figures of a detector on recordings of one engine."""
    predictions = [predict(detector, one) for one in recordings]
    score = np.concatenate(
        [np.interp(one.ticks.times_s, p.times_s, p.event_probability) for one, p in zip(recordings, predictions, strict=True)]
    )
    event, known = (np.concatenate([getattr(one.ticks, name) for one in recordings]) for name in ("event", "known"))
    recall, times = recall_within_time(recordings, predictions)
    regimes = [regime_figures(one, p) for one, p in zip(recordings, predictions, strict=True)]
    hits = Hits()
    for own, _ in regimes:
        hits = hits.plus(own)
    right = float(np.average([share for _, share in regimes], weights=[one.end_s for one in recordings]))
    verdicts = [v for one, p in zip(recordings, predictions, strict=True) for v in clip_verdicts(detector, one, p)]
    distance = float(np.median(np.concatenate([p.distance for p in predictions])))
    yield (
        f"{title:26} {auc(score[known], event[known]):6.3f} {recall:6.2f} {times:5.2f} {hits.f1:7.3f} {right:6.2f}   "
        f"{_verdict_words(verdicts)}   {distance:5.2f}"
    )
    yield f"{'':26} {_kind_words(recordings, predictions)}"


def _verdict_words(verdicts: Sequence[ClipVerdict]) -> str:
    true = np.array([v.true for v in verdicts])
    limits, score = InteractiveSettings(), np.array([v.score for v in verdicts])
    said = score >= limits.min_score
    sure = np.array([v.confidence >= InteractionSettings().min_confidence for v in verdicts])
    answered = sure & (said | (score < limits.min_unknown_score))
    hits = int((true & said & answered).sum())
    yes, asked = int((said & answered).sum()), int((true & answered).sum())
    false_no = int((true & ~said & answered).sum())
    return f"yes right {hits}/{yes}, found {hits}/{asked}, false no {false_no}, unknown {int((~answered).sum())}/{len(true)}"


def _kind_words(recordings: Sequence[Recording], predictions: Sequence[Prediction]) -> str:
    """Return for each kind how many of its events a span touches, and how many are named rightly."""
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for one, prediction in zip(recordings, predictions, strict=True):
        found = [
            (s.start_s - _WITHIN_S, s.end_s + _WITHIN_S)
            for s in interaction_spans(prediction, InteractionSettings(), one.end_s)
        ]
        fps = one.labels.truth.fps
        for span in one.labels.spans:
            start, end = span.start / fps, span.end / fps
            ticks = (prediction.times_s >= start - 0.15) & (prediction.times_s <= end + 0.15)
            named = ticks.any() and int(np.argmax(prediction.kind_probability[ticks].max(0))) == KINDS.index(span.kind)
            touched = any(a < end and b > start for a, b in found)
            for number, holds in enumerate((True, touched, touched and named)):
                counts[span.kind][number] += bool(holds)
    return ", ".join(f"{kind} {touched}/{all_} ({named} named)" for kind, (all_, touched, named) in sorted(counts.items()))


def confidence_lines(verdicts: Sequence[ClipVerdict]) -> Iterator[str]:
    """Yield a reliability table: by confidence, how many verdicts are right."""
    right = np.array([(v.score >= InteractiveSettings().min_score) == v.true for v in verdicts])
    confidence = np.array([v.confidence for v in verdicts])
    order = auc(confidence, right)
    yield f"confidence of right over wrong verdicts: AUC {order:.3f} ({len(right)} clips, {right.mean():.2f} right)"
    for low, high in ((0.0, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.01)):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            said, share = confidence[inside].mean(), right[inside].mean()
            yield f"  {low:.1f} to {min(high, 1):.1f}: {inside.sum():4} clips, said {said:.2f}, right {share:.2f}"


def load_detector(path: Path) -> Detector:
    with np.load(path) as data:
        return Detector(dict(data))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each engine and each detector."""
    parser = argparse.ArgumentParser(prog="bench.interactions", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--left-out", action="append", default=[], metavar="ENGINE=FILE")
    options = parser.parse_args(arguments)
    print(describe())
    recordings = [load(path) for path in options.recordings]
    engines = sorted({one.labels.engine for one in recordings})
    detectors = [(name, load_detector(Path(file))) for name, _, file in (word.partition("=") for word in options.weights)]
    left_out = {name: load_detector(Path(file)) for name, _, file in (word.partition("=") for word in options.left_out)}
    print(f"{'':26}    AUC recall times regimeF1 right   interactive of clips of {_CLIP_S:g} s   distance")
    for engine in engines:
        own = [one for one in recordings if one.labels.engine == engine]
        minutes, share = sum(one.end_s for one in own) / 60, float(np.concatenate([one.labels.event for one in own]).mean())
        print(f"{engine}: {len(own)} recordings, {minutes:.1f} min, events {share:.0%} of the time")
        judges = [*detectors, *([("left out", left_out[engine])] if engine in left_out else [])]
        for name, detector in judges:
            print("\n".join(engine_lines(f"  {name}", own, detector)))
    for name, detector in detectors:
        verdicts = [v for one in recordings for v in clip_verdicts(detector, one, predict(detector, one))]
        print(f"\n{name}: " + "\n".join(confidence_lines(verdicts)))
    if left_out:
        judged = [one for one in recordings if one.labels.engine in left_out]
        verdicts = [v for one in judged for d in [left_out[one.labels.engine]] for v in clip_verdicts(d, one, predict(d, one))]
        print("\nleft out: " + "\n".join(confidence_lines(verdicts)))


if __name__ == "__main__":
    main()
