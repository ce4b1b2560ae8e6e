"""Print the table of engines: cuts, interactions, regimes, clip boundaries, verdicts and names.

    python -m bench.engines FOLDER... --release old.npz --left-out minetest=a.npz --left-out openarena=b.npz
        --left-out doom=c.npz [--plot docs/images/interactions-reliability.png]

It judges the recordings named `test` of `synth.engines.label_set`. With `--split all` it judges all, of which the left-out
weights have seen none. Each engine has three rows: the release before, weights that never saw the engine, and the shipped
weights. A game on which nothing is trained has no left-out row, since no weights have seen it. Cuts do not depend on the
weights; PySceneDetect's are beside them. What is measured of a recording is stored next to it.
"""

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from bench.interactions import (
    ClipVerdict,
    Recording,
    clip_verdicts,
    interaction_spans,
    load,
    load_detector,
    predict,
    recall_within_time,
    regime_figures,
)
from bench.labelled_ticks import SPLITS, recordings_in
from bench.machine import describe
from bench.measures import Hits, auc, count_contained, match_instants
from bench.partition import CUT_WITHIN, pyscenedetect_cuts
from curation.actions import learned, spans
from curation.actions.detect import high_probability_nearby
from curation.actions.learned import KINDS, Detector, Prediction
from curation.actions.spans import InteractionSettings
from curation.captions.interaction import CATEGORIES, InteractiveSettings
from curation.partition.chunks import ScanSettings
from curation.partition.clip_spans import boundary_cost, divide_scene
from curation.partition.cuts import SceneSettings, cut_frames
from curation.partition.optical_flow import FlowSettings
from curation.partition.scan import scan
from synth.angles import wrapped_deg
from synth.doom import truth
from synth.doom.truth import Truth
from synth.engines.truth_file import UNITS_PER_M

_BRIEF_S = 0.3  # an event that is not longer is brief
_WITHIN_S = 0.25
_SNAP_M, _SNAP_DEG = 4.0, 45.0  # how far a camera that snaps stays near the same view
_BANDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_HEAD = (
    "| engine | weights | AUC | recall at <= 2.5 x time | brief events found | regime F1 | right regime | boundaries inside |"
    " interactive: yes right, found where answered, false no, unknown | named right | category right |"
)


@dataclass(frozen=True)
class Scanned:
    """What a scan measured of a recording, and PySceneDetect's cuts."""

    times_s: np.ndarray  # [N]
    content: np.ndarray  # [N]
    flow_match: np.ndarray  # [N]
    layout_similarity: np.ndarray  # [N]
    pair_times_s: np.ndarray  # [P]
    motion: np.ndarray  # [P], of the camera and everything else, px/frame
    fps: float
    end_s: float
    adaptive: np.ndarray  # frames, as `content_cuts`
    content_cuts: np.ndarray

    def cuts(self) -> list[int]:
        return cut_frames(self.content, self.flow_match, self.layout_similarity, self.fps, SceneSettings())


def scanned(path: Path) -> Scanned:
    """Scan a recording, or read what was stored of it."""
    stored = path.with_suffix(".scan.npz")
    if not stored.exists():
        signals = scan(str(path), ScanSettings(FlowSettings(backend="dis")))
        part = stored.with_name(f".part-{os.getpid()}-{stored.name}")
        np.savez_compressed(
            part,
            allow_pickle=False,
            times_s=signals.times_s,
            content=signals.content,
            flow_match=signals.flow_match,
            layout_similarity=signals.layout_similarity,
            pair_times_s=signals.pair_times_s,
            motion=signals.motion.camera + signals.motion.object,
            fps=signals.fps,
            end_s=signals.end_s,
            adaptive=np.array(pyscenedetect_cuts(AdaptiveDetector(), path), np.int64),
            content_cuts=np.array(pyscenedetect_cuts(ContentDetector(), path), np.int64),
        )
        part.replace(stored)
    with np.load(stored) as data:
        values = dict(data)
    return Scanned(**{**values, "fps": float(values["fps"]), "end_s": float(values["end_s"])})


def boundaries(one: Scanned, prediction: Prediction) -> list[float]:
    """Return where clips begin, in seconds, except where scenes do: as the pipeline divides scenes, by a given prediction."""
    total = spans.smooth(one.motion, one.pair_times_s)
    at = np.unique(np.searchsorted(one.times_s, prediction.times_s - 1e-6).clip(0, len(one.times_s) - 1))
    times_s = one.times_s[at]
    event = high_probability_nearby(np.interp(times_s, prediction.times_s, prediction.event_probability))
    cost = boundary_cost(np.interp(times_s, one.pair_times_s, total), event)
    scenes = [0.0, *(float(one.times_s[cut]) for cut in one.cuts()), one.end_s]
    settings = SceneSettings()
    parts = [divide_scene(low, high, settings, times_s, cost)[1:] for low, high in pairwise(scenes)]
    return [start for part in parts for start, _ in part]


def inside_events(one: Recording, starts: Sequence[float]) -> list[bool]:
    """Return for each boundary whether it lies inside an event: between two frames of it."""
    event = one.labels.event
    inside, fps = event & np.roll(event, 1), one.labels.truth.fps
    return [bool(inside[min(round(start * fps), len(event) - 1)]) for start in starts]


def brief_events_found(one: Recording, prediction: Prediction) -> tuple[int, int]:
    """Return how many events of at most 0.3 s lie inside a span, and how many there are."""
    brief = [(start, end) for start, end in one.true_events() if end - start <= _BRIEF_S + 1e-6]
    predicted = [(s.start_s, s.end_s) for s in interaction_spans(prediction, InteractionSettings(), one.end_s)]
    return count_contained(brief, predicted, _WITHIN_S), len(brief)


def names_right(one: Recording, prediction: Prediction) -> tuple[int, int]:
    """Return how many of the spans that are named have an event of that kind in them, and how many are named."""
    settings, fps = InteractionSettings(), one.labels.truth.fps
    right = named = 0
    for span in interaction_spans(prediction, settings, one.end_s):
        kind = likely_kind(prediction, span.start_s, span.end_s, settings)
        if kind is None:
            continue
        named += 1
        near = range(round((span.start_s - _WITHIN_S) * fps), round((span.end_s + _WITHIN_S) * fps))
        right += any(s.kind == kind and s.start < near.stop and s.end > near.start for s in one.labels.spans)
    return right, named


def likely_kind(prediction: Prediction, start_s: float, end_s: float, settings: InteractionSettings) -> str | None:
    """Return the most probable kind inside a span, if it is probable enough to be named."""
    inside = (prediction.times_s >= start_s - 1e-6) & (prediction.times_s < end_s)
    if not inside.any():
        return None
    highest = prediction.kind_probability[inside].max(0)
    best = int(np.argmax(highest))
    return KINDS[best] if highest[best] >= settings.min_kind else None


def answer(verdict: ClipVerdict) -> bool | None:
    """Return what is said of a clip: interactive or not, or None where that is unknown. As `detect.unknown_reason` has it."""
    limits, settings = InteractiveSettings(), InteractionSettings()
    if verdict.confidence < settings.min_confidence or verdict.distance > settings.max_distance:
        return None
    if verdict.score >= limits.min_score:
        return True
    return None if verdict.score >= limits.min_unknown_score or verdict.distance > settings.max_quiet_distance else False


def verdict_words(verdicts: Sequence[ClipVerdict]) -> str:
    """Return precision, recall where answered, false nos and abstentions of verdicts, as counts."""
    said = [answer(verdict) for verdict in verdicts]
    pairs = [(says, verdict.true) for says, verdict in zip(said, verdicts, strict=True)]
    yes, right = sum(says is True for says, _ in pairs), pairs.count((True, True))
    asked, false_no = sum(says is not None and true for says, true in pairs), pairs.count((False, True))
    return f"{right} of {yes}, {right} of {asked}, {false_no}, {said.count(None)} of {len(said)}"


def categories_right(one: Recording, prediction: Prediction, verdicts: Sequence[ClipVerdict], clip_s: float) -> tuple[int, int]:
    """Return how many of the clips that are called interactive in a category have an event of it, and how many there are."""
    fps, right, said = one.labels.truth.fps, 0, 0
    for verdict in verdicts:
        start_s, end_s = verdict.start_s, verdict.start_s + clip_s
        if not answer(verdict):
            continue
        predicted = spans.clip_to(interaction_spans(prediction, InteractionSettings(), one.end_s), start_s, end_s)
        surest = max(predicted, key=lambda span: span.energy * min(1.0, (span.end_s - span.start_s) / 0.5))
        kind = likely_kind(prediction, surest.start_s, surest.end_s, InteractionSettings())
        if kind is None or kind not in CATEGORIES:
            continue
        said += 1
        there = {CATEGORIES.get(s.kind) for s in one.labels.spans if s.start < end_s * fps and s.end > start_s * fps}
        right += CATEGORIES[kind] in there
    return right, said


def row(engine: str, name: str, recordings: Sequence[Recording], scans: Sequence[Scanned], detector: Detector) -> str:
    """Return a line of the table: the figures of a detector on the recordings of an engine. Without scans boundaries lack."""
    predictions = [predict(detector, one) for one in recordings]
    paired = list(zip(recordings, predictions, strict=True))
    score = np.concatenate([prediction.event_probability for prediction in predictions])
    event, known = (np.concatenate([getattr(one.ticks, name) for one in recordings]) for name in ("event", "known"))
    recall, _ = recall_within_time(recordings, predictions)
    hits, right_s = Hits(), 0.0
    for own, share in (regime_figures(one, prediction) for one, prediction in paired):
        hits, right_s = hits.plus(own), right_s + share / len(paired)
    inside = [
        flag
        for (one, prediction), measured in zip(paired, scans, strict=bool(scans))
        for flag in inside_events(one, boundaries(measured, prediction))
    ]
    verdicts = [[*clip_verdicts(detector, one, prediction)] for one, prediction in paired]
    brief, names, categories = (np.zeros(2, int) for _ in range(3))
    for (one, prediction), own_verdicts in zip(paired, verdicts, strict=True):
        brief += brief_events_found(one, prediction)
        names += names_right(one, prediction)
        categories += categories_right(one, prediction, own_verdicts, 6.0)
    cells = [
        engine,
        name,
        _number(auc(score[known], event[known]), 3),
        _number(recall if event.any() else float("nan"), 2),
        _count(brief),
        f"{hits.f1:.3f}",
        f"{right_s:.2f}",
        _count(np.array([sum(inside), len(inside)])),
        verdict_words([verdict for own in verdicts for verdict in own]),
        _count(names),
        _count(categories),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _count(pair: np.ndarray) -> str:
    return f"{pair[0]} of {pair[1]}" if pair[1] else ""


def cut_rows(engine: str, recordings: Sequence[Recording], scans: Sequence[Scanned]) -> Iterator[str]:
    """Yield a line for each method of finding cuts."""
    methods = {"ours": Scanned.cuts, "PySceneDetect Adaptive": _adaptive, "PySceneDetect Content": _content}
    for name, detect in methods.items():
        hits, snapped = Hits(), Hits()
        for one, measured in zip(recordings, scans, strict=True):
            cuts, snaps = cuts_and_snaps(one.labels.truth)
            detected = detect(measured)
            of_snaps = [cut for cut in detected if _near(cut, snaps) and not _near(cut, cuts)]
            snapped = snapped.plus(match_instants(of_snaps, snaps, CUT_WITHIN))
            hits = hits.plus(match_instants([cut for cut in detected if cut not in of_snaps], cuts, CUT_WITHIN))
        f1 = _number(hits.f1 if hits.true else float("nan"), 3)
        snap_words = f"{snapped.hit} of {snapped.true}" if snapped.true else ""
        yield f"| {engine} | {name} | {f1} | {hits.hit} of {hits.true} | {hits.false} | {snap_words} |"


def cuts_and_snaps(recorded: Truth) -> tuple[list[int], list[int]]:
    """Return the frames at which the picture is of another place, and those at which the camera snaps within the same view.

    A camera snaps where a wall gets in its way, or from the eyes of who dies to behind. Most of the picture is still there, so
    that whether it is a cut is a matter of taste. Of those less than `min_scene_s` after another only the first counts.
    """
    cuts: list[int] = []
    snaps: list[int] = []
    last = -math.inf
    for frame in truth.discontinuities(recorded):
        if frame - last < SceneSettings.min_scene_s * recorded.fps:
            continue
        last = frame
        far_m = float(np.linalg.norm(recorded.position[frame] - recorded.position[frame - 1])) / UNITS_PER_M
        turns = (getattr(recorded, name)[frame] - getattr(recorded, name)[frame - 1] for name in ("yaw_deg", "pitch_deg"))
        turned = max(abs(wrapped_deg(turn)) for turn in turns)
        (snaps if far_m <= _SNAP_M and turned < _SNAP_DEG else cuts).append(frame)
    return cuts, snaps


def _near(frame: int, others: Sequence[int]) -> bool:
    return any(abs(frame - other) <= CUT_WITHIN for other in others)


def _adaptive(one: Scanned) -> list[int]:
    return [int(frame) for frame in one.adaptive]


def _content(one: Scanned) -> list[int]:
    return [int(frame) for frame in one.content_cuts]


def reliability(verdicts: Sequence[ClipVerdict]) -> list[tuple[float, float, int]]:
    """Return for each band of confidence that has clips the mean confidence, the share of right verdicts, and the count."""
    confidence = np.array([verdict.confidence for verdict in verdicts])
    right = np.array([(verdict.score >= InteractiveSettings().min_score) == verdict.true for verdict in verdicts])
    bands = []
    for low, high in pairwise(_BANDS):
        inside = (confidence >= low) & ((confidence < high) | (high == 1.0))
        if inside.any():
            bands.append((float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    return bands


def plot_reliability(curves: dict[str, list[tuple[float, float, int]]], target: Path) -> None:
    """Draw how often verdicts are right against how sure they are, a line for each engine. Areas are counts of clips."""
    size, edge = 420, 60
    picture = np.full((size + 2 * edge, size + 2 * edge + 150, 3), 255, np.uint8)

    def at(x: float, y: float) -> tuple[int, int]:
        return edge + round(size * (x - 0.3) / 0.7), edge + round(size * (1 - y))

    for tick in np.arange(0.3, 1.01, 0.1).tolist():
        cv2.line(picture, at(tick, 0), at(tick, 1), (230, 230, 230), 1)
        _write(picture, f"{tick:.1f}", (at(tick, 0)[0] - 10, at(tick, 0)[1] + 18))
    for tick in np.arange(0, 1.01, 0.2).tolist():
        cv2.line(picture, at(0.3, tick), at(1, tick), (230, 230, 230), 1)
        _write(picture, f"{tick:.1f}", (at(0.3, tick)[0] - 30, at(0.3, tick)[1] + 5))
    cv2.line(picture, at(0.3, 0.3), at(1, 1), (160, 160, 160), 1, cv2.LINE_AA)
    _write(picture, "confidence of a clip's verdict", (edge + 110, size + edge + 42))
    _write(picture, "share of verdicts that are right", (edge - 40, edge - 20))
    colours = ((180, 90, 20), (40, 140, 40), (30, 60, 200), (140, 40, 140))
    for number, ((name, bands), colour) in enumerate(zip(curves.items(), colours, strict=False)):
        points = [at(max(0.3, said), right) for said, right, _ in bands]
        for first, second in pairwise(points):
            cv2.line(picture, first, second, colour, 2, cv2.LINE_AA)
        for point, (_, _, count) in zip(points, bands, strict=True):
            cv2.circle(picture, point, round(3 + 1.2 * count**0.5), colour, -1, cv2.LINE_AA)
        _write(picture, name, (size + edge + 20, edge + 24 * number + 12), colour)
    cv2.imwrite(str(target), picture)


def _write(picture: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int] = (60, 60, 60)) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="bench.engines", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--release", type=Path, required=True, help="weights of the release before")
    parser.add_argument("--left-out", action="append", default=[], metavar="ENGINE=FILE")
    parser.add_argument("--no-scan", action="store_true", help="leave out cuts and boundaries, which take most of the time")
    parser.add_argument("--plot", type=Path, help="where the reliability of left-out weights is drawn")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test", help="which takes; default test")
    options = parser.parse_args(arguments)
    print(describe())
    splits = SPLITS if options.split == "all" else (options.split,)
    recordings = [load(path) for path in recordings_in(options.folders, splits)]
    left_out = {name: load_detector(Path(file)) for name, _, file in (word.partition("=") for word in options.left_out)}
    release, shipped = load_detector(options.release), learned.shipped_detector()
    lines: list[str] = []
    cut_lines: list[str] = []
    curves: dict[str, list[tuple[float, float, int]]] = {}
    for engine in sorted({one.labels.engine for one in recordings}):
        own = [one for one in recordings if one.labels.engine == engine]
        scans = [] if options.no_scan else [scanned(one.path) for one in own]
        minutes, share = sum(one.end_s for one in own) / 60, float(np.concatenate([one.labels.event for one in own]).mean())
        name = f"{engine} ({len(own)} takes, {minutes:.1f} min, events {share:.0%} of the time)"
        judges = {"the release before": release, "left out": left_out.get(engine), "these": shipped}
        lines += [row(name, words, own, scans, judge) for words, judge in judges.items() if judge is not None]
        cut_lines += cut_rows(name, own, scans) if scans else []
        judge = left_out.get(engine, shipped)
        verdicts = [verdict for one in own for verdict in clip_verdicts(judge, one, predict(judge, one))]
        curves[engine] = reliability(verdicts)
        right = np.array([(v.score >= InteractiveSettings().min_score) == v.true for v in verdicts])
        order = _number(auc(np.array([v.confidence for v in verdicts]), right), 3) or "undefined"
        bands = ", ".join(f"{said:.2f} -> {share:.2f} ({count})" for said, share, count in curves[engine])
        print(f"{engine}: confidence orders right over wrong with AUC {order}; said -> right (clips): {bands}")
    print("\n".join(["", _HEAD, f"|{'---|' * (_HEAD.count('|') - 1)}", *lines]))
    if cut_lines:
        head = "| engine | cuts by | F1 | found | false | snaps found |"
        print("\n".join(["", head, f"|{'---|' * (head.count('|') - 1)}", *cut_lines]))
    if options.plot:
        plot_reliability(curves, options.plot)


if __name__ == "__main__":
    main()
