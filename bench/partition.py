"""Cuts, interactions, control regimes and clip boundaries against a game engine's truth, each beside the plain way.

Records its own footage, on maps on which nothing was trained or tuned: ten-cut recordings with HUD and fights, longer takes.
Another --seed gives other maps, paths and fights. Or give it recordings of `python -m synth.doom` (each with its .jsonl).
"""

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.machine import describe
from bench.measures import Hits, auc, contained, lasting_regimes, matched
from curation.actions.detect import ActionSettings, Happenings, happenings
from curation.actions.spans import ActionSpan
from curation.media import decode
from curation.media.source import probe
from curation.partition import cuts as scenes
from curation.partition.chunks import ScanSettings
from curation.partition.cuts import SceneSettings
from curation.partition.optical_flow import FlowSettings
from curation.partition.scan import Signals, scan
from operators.partition import clip_spans
from synth.doom import truth
from synth.doom.map_splits import maps_of
from synth.doom.record import Recording, record
from synth.doom.truth import Truth

SEED = 9700
_CUT_WITHIN, _WITHIN_S = 2, 0.25  # frames; seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment, what each recording gave, and the tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench partition", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, help="recordings with their .jsonl; default: recorded anew")
    parser.add_argument("--seed", type=int, default=SEED, help=f"which maps and paths to record; default {SEED}")
    parser.add_argument("--flow", default="dis", choices=("dis", "raft"), help="default dis")
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        files = options.recordings or [_made(Path(folder), *take) for take in takes(options.seed)]
        table = Tables()
        for file in files:
            print(table.add(file, scan(str(file), ScanSettings(FlowSettings(backend=options.flow)))), flush=True)
        print(table)


def takes(seed: int) -> Iterator[tuple[str, Recording]]:
    """Three recordings with ten cuts each, three with longer scenes; held-out maps only."""
    maps = maps_of(held_out=True)
    rng = random.Random(seed)
    for number, style in enumerate(("fight", "explore", "fight")):
        places = [(*place, 6.0) for place in rng.sample(maps, 11)]
        yield f"cuts{number}", Recording(places, seed=seed + number, style=style, crf=rng.choice((23, 28, 34)))
    for number, (style, hud) in enumerate((("explore", True), ("explore", False), ("fight", True)), start=3):
        places = [(*place, 45.0) for place in rng.sample(maps, 2)]
        yield f"take{number}", Recording(places, seed=seed + number, style=style, hud=hud, height=(480, 360)[number % 2])


def _made(folder: Path, name: str, recording: Recording) -> Path:
    record(folder / f"{name}.mp4", recording)
    return folder / f"{name}.mp4"


class Tables:
    """What was found and what was true, added up over recordings."""

    def __init__(self) -> None:
        self._minutes = 0.0
        self._cuts: defaultdict[str, Hits] = defaultdict(Hits)
        self._bounds: defaultdict[str, Hits] = defaultdict(Hits)
        self._inside: defaultdict[str, list[bool]] = defaultdict(list)
        self._scores: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        self._spans: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))

    def add(self, file: Path, signals: Signals) -> str:
        """Measure one recording; what it gave in a line."""
        told = truth.read_truth(file.with_suffix(".jsonl"))
        learned, plain = (happenings(signals, ActionSettings(detector=which)) for which in ("learned", "flow"))
        self._minutes += signals.end_s / 60
        # A teleport is as much a cut of the picture as a change of map.
        for name, cuts in all_cuts(file, signals).items():
            self._cuts[name] = self._cuts[name].plus(matched(cuts, truth.discontinuities(told), _CUT_WITHIN))
        for name, found in (("learned", learned), ("flow", plain)):
            self._bounds[name] = self._bounds[name].plus(matched(changes(found), true_changes(told), _WITHIN_S))
            self._spans[name] += span_figures(found.spans, told)
        self._add_boundaries(signals, told)
        event = truth.interactions(told)
        for name, score in scores(signals, learned, plain, told.time_s).items():
            self._scores[name].append(score)
        self._scores["truth"].append(event)
        trusted = "trusted" if learned.distance <= ActionSettings().interactions.max_distance else "not trusted"
        one = auc(self._scores["learned detector"][-1], event)
        return f"{file.name:24} AUC {one:.3f}, {event.mean():.0%} of the time; distance {learned.distance:.2f} ({trusted})"

    def _add_boundaries(self, signals: Signals, told: Truth) -> None:
        inside = truth.interactions(told) & np.roll(truth.interactions(told), 1)
        ours = [start for _, start, _ in clip_spans(signals, SceneSettings(), ActionSettings())]
        cuts = {round(cut / told.fps, 3) for cut in [0, *truth.discontinuities(told)]}
        chosen = [t for t in ours if not any(abs(t - cut) < _CUT_WITHIN / told.fps + 1e-6 for cut in cuts)]
        for name, times in (("ours", chosen), ("every 6 s", np.arange(6.0, signals.end_s - 1, 6.0))):
            self._inside[name] += [bool(inside[min(round(t * told.fps), len(told) - 1)]) for t in times]

    def __str__(self) -> str:
        return "\n".join([*self._cut_lines(), *self._event_lines(), *self._boundary_lines()])

    def _cut_lines(self) -> Iterator[str]:
        yield f"\n{'cuts':28}     F1  found  true  false  false a minute (of {self._minutes:.1f})"
        for name, hits in self._cuts.items():
            a_minute = hits.false / self._minutes
            yield f"{name:28} {hits.f1:6.3f} {hits.hit:6} {hits.true:5} {hits.false:6} {a_minute:6.2f}"

    def _event_lines(self) -> Iterator[str]:
        flags = np.concatenate(self._scores["truth"])
        yield f"\n{'interactions':28}    AUC   ({flags.mean():.0%} of the time)"
        for name in [name for name in self._scores if name != "truth"]:
            yield f"{name:28} {auc(np.concatenate(self._scores[name]), flags):6.3f}"
        yield f"\n{'interaction spans':28} inside  events  span time / event time"
        for name, (hit, true, length, needed) in self._spans.items():
            yield f"{name:28} {hit / true:6.3f} {true:7.0f} {length / needed:8.2f}"

    def _boundary_lines(self) -> Iterator[str]:
        yield f"\n{'regime boundaries':28}     F1  found  true  false (within {_WITHIN_S} s)"
        for name, hits in self._bounds.items():
            yield f"{name:28} {hits.f1:6.3f} {hits.hit:6} {hits.true:5} {hits.false:6}"
        yield f"\n{'clip boundaries':28} inside an interaction"
        for name, inside in self._inside.items():
            yield f"{name:28} {np.mean(inside):6.1%}  ({sum(inside)} of {len(inside)})"


def scores(signals: Signals, learned: Happenings, plain: Happenings, times_s: np.ndarray) -> dict[str, np.ndarray]:
    """What each way says at times [n] of how likely something happens."""
    motion, pairs_s = signals.motion, signals.pair_times_s
    ways = {
        "learned detector": (learned.times_s, learned.event),
        "unusual motion (fallback)": (plain.times_s, plain.event),
        "residual flow": (pairs_s, motion.object),
        "residual / camera motion": (pairs_s, motion.object / (motion.camera + 0.5)),
        "camera motion": (pairs_s, motion.camera),
    }
    return {name: np.interp(times_s, *way) for name, way in ways.items()}


def span_figures(spans: Sequence[ActionSpan], told: Truth) -> np.ndarray:
    """Events inside a span, events, seconds of spans, seconds of events."""
    found = [(span.start_s, span.end_s) for span in spans if span.kind == "interaction"]
    true = [(start / told.fps, end / told.fps) for start, end in truth.runs(truth.interactions(told))]
    lengths = [sum(end - start for start, end in which) for which in (found, true)]
    return np.array([contained(true, found, _WITHIN_S), len(true), *lengths])


def changes(found: Happenings) -> list[float]:
    """Where a regime begins or ends, in seconds; each instant once."""
    spans = [span for span in found.spans if span.kind == "regime"]
    return sorted({round(t, 3) for span in spans for t in (span.start_s, span.end_s)} - {0.0})


def true_changes(told: Truth) -> list[float]:
    """Where the engine's motion changes from one regime to another that lasts."""
    names = lasting_regimes(told)
    return [float(told.time_s[k]) for k in range(1, len(names)) if names[k] != names[k - 1]]


def all_cuts(file: Path, signals: Signals) -> dict[str, list[int]]:
    """Frames at which each way finds a new scene: ours and PySceneDetect's detectors at their defaults, on equal pictures."""
    from scenedetect.detectors import AdaptiveDetector, ContentDetector

    return {
        "ours": scenes.cut_frames(signals.content, signals.explained, signals.layout, signals.fps, SceneSettings()),
        "PySceneDetect Adaptive": _theirs(AdaptiveDetector(), file),
        "PySceneDetect Content": _theirs(ContentDetector(), file),
    }


def _theirs(detector, file: Path) -> list[int]:  # type: ignore[no-untyped-def]
    from scenedetect import FrameTimecode

    source = probe(str(file))
    painter, count, cuts = decode.FrameConverter(source, (320, round(source.height * 320 / source.width))), 0, []
    for count, (_, frame) in enumerate(decode.decode(str(file), purpose="bench")):
        cuts += detector.process_frame(FrameTimecode(count, source.fps), painter(frame)[:, :, ::-1])
    return sorted(cut.frame_num for cut in [*cuts, *detector.post_process(FrameTimecode(count, source.fps))])


if __name__ == "__main__":
    main()
