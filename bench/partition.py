"""Measure cuts, interactions, regimes and clip boundaries against a game engine's ground truth, with a baseline for each.

It records its own footage, on maps on which nothing was trained or tuned: recordings with ten cuts, HUD and fights, and longer
takes. Another --seed gives other maps, paths and fights. Or give it recordings of `python -m synth.doom`, each with its .jsonl.
"""

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scenedetect import FrameTimecode, SceneDetector, SceneManager, open_video
from scenedetect.detectors import AdaptiveDetector, ContentDetector, HashDetector

from bench.machine import describe
from bench.measures import Hits, auc, count_contained, lasting_regimes, match_instants
from curation.actions.detect import Actions, ActionSettings, detect_actions
from curation.actions.spans import ActionSpan
from curation.media import decode
from curation.media.source import probe
from curation.partition.chunks import ScanSettings
from curation.partition.cuts import SceneSettings, cut_frames
from curation.partition.detectors import GameDetector
from curation.partition.optical_flow import FlowSettings
from curation.partition.scan import Signals, scan
from operators.partition import clip_spans
from synth.doom import truth
from synth.doom.map_splits import maps_of
from synth.doom.record import Recording, record
from synth.doom.truth import Truth

SEED = 9700
CUT_WITHIN, _WITHIN_S = 2, 0.25  # frames, seconds: how far from the truth a result may be


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment, a line of results for each recording, and the tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench partition", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, help="recordings with their .jsonl; default: new ones are recorded")
    parser.add_argument("--seed", type=int, default=SEED, help=f"which maps and paths to record; default {SEED}")
    parser.add_argument("--flow", default="dis", choices=("dis", "raft"), help="default dis")
    parser.add_argument("--raft", default="small", choices=("small", "large"), help="RAFT's size; default small")
    parser.add_argument("--weights", help="RAFT's weights: a path, or torchvision's name; default as in a recipe")
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        files = options.recordings or [_record(Path(folder), *take) for take in takes(options.seed)]
        table, flow = Tables(), FlowSettings(options.flow, options.raft, options.weights)
        for file in files:
            print(table.add(file, scan(str(file), ScanSettings(flow))), flush=True)
        print(table)


def takes(seed: int) -> Iterator[tuple[str, Recording]]:
    """Yield three recordings with ten cuts each and three with longer scenes, on held-out maps only."""
    maps = maps_of(held_out=True)
    rng = random.Random(seed)
    for number, style in enumerate(("fight", "explore", "fight")):
        places = [(*place, 6.0) for place in rng.sample(maps, 11)]
        yield f"cuts{number}", Recording(places, seed=seed + number, style=style, crf=rng.choice((23, 28, 34)))
    for number, (style, hud) in enumerate((("explore", True), ("explore", False), ("fight", True)), start=3):
        places = [(*place, 45.0) for place in rng.sample(maps, 2)]
        yield f"take{number}", Recording(places, seed=seed + number, style=style, hud=hud, height=(480, 360)[number % 2])


def _record(folder: Path, name: str, recording: Recording) -> Path:
    record(folder / f"{name}.mp4", recording)
    return folder / f"{name}.mp4"


class Tables:
    """Results and ground truth, summed over recordings."""

    def __init__(self) -> None:
        self._minutes = 0.0
        self._cuts: defaultdict[str, Hits] = defaultdict(Hits)
        self._bounds: defaultdict[str, Hits] = defaultdict(Hits)
        self._inside: defaultdict[str, list[bool]] = defaultdict(list)
        self._scores: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        self._spans: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))

    def add(self, file: Path, signals: Signals) -> str:
        """Measure one recording, and return its results in a line."""
        ground_truth = truth.read_truth(file.with_suffix(".jsonl"))
        learned, plain = (detect_actions(signals, ActionSettings(detector=name)) for name in ("learned", "flow"))
        self._minutes += signals.end_s / 60
        # A teleport is as much a cut of the picture as a change of map.
        for name, cuts in all_cuts(file, signals).items():
            self._cuts[name] = self._cuts[name].plus(match_instants(cuts, truth.discontinuities(ground_truth), CUT_WITHIN))
        for name, actions in (("learned", learned), ("flow", plain)):
            self._bounds[name] = self._bounds[name].plus(
                match_instants(changes(actions), true_changes(ground_truth), _WITHIN_S)
            )
            self._spans[name] += span_figures(actions.spans, ground_truth)
        self._add_boundaries(signals, ground_truth)
        event = truth.interactions(ground_truth)
        for name, score in scores(signals, learned, plain, ground_truth.time_s).items():
            self._scores[name].append(score)
        self._scores["truth"].append(event)
        trusted = "trusted" if learned.distance <= ActionSettings().interactions.max_distance else "not trusted"
        one = auc(self._scores["learned detector"][-1], event)
        return f"{file.name:24} AUC {one:.3f}, {event.mean():.0%} of the time; distance {learned.distance:.2f} ({trusted})"

    def _add_boundaries(self, signals: Signals, ground_truth: Truth) -> None:
        inside = truth.interactions(ground_truth) & np.roll(truth.interactions(ground_truth), 1)
        starts = [start for _, start, _ in clip_spans(signals, SceneSettings(), ActionSettings())]
        cuts = {round(cut / ground_truth.fps, 3) for cut in [0, *truth.discontinuities(ground_truth)]}
        boundaries = [t for t in starts if not any(abs(t - cut) < CUT_WITHIN / ground_truth.fps + 1e-6 for cut in cuts)]
        for name, times in (("ours", boundaries), ("every 6 s", np.arange(6.0, signals.end_s - 1, 6.0))):
            self._inside[name] += [bool(inside[min(round(t * ground_truth.fps), len(ground_truth) - 1)]) for t in times]

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


def scores(signals: Signals, learned: Actions, plain: Actions, times_s: np.ndarray) -> dict[str, np.ndarray]:
    """Return each method's score of how likely an interaction is, at times [n]."""
    motion, pairs_s = signals.motion, signals.pair_times_s
    methods = {
        "learned detector": (learned.times_s, learned.event_probability),
        "unusual motion (fallback)": (plain.times_s, plain.event_probability),
        "residual flow": (pairs_s, motion.object),
        "residual / camera motion": (pairs_s, motion.object / (motion.camera + 0.5)),
        "camera motion": (pairs_s, motion.camera),
    }
    return {name: np.interp(times_s, *points) for name, points in methods.items()}


def span_figures(spans: Sequence[ActionSpan], ground_truth: Truth) -> np.ndarray:
    """Return the number of events inside a span, the number of events, the seconds of spans, and the seconds of events."""
    detected = [(span.start_s, span.end_s) for span in spans if span.kind == "interaction"]
    true = [(start / ground_truth.fps, end / ground_truth.fps) for start, end in truth.runs(truth.interactions(ground_truth))]
    lengths = [sum(end - start for start, end in which) for which in (detected, true)]
    return np.array([count_contained(true, detected, _WITHIN_S), len(true), *lengths])


def changes(actions: Actions) -> list[float]:
    """Return where a regime begins or ends, in seconds, each instant once."""
    spans = [span for span in actions.spans if span.kind == "regime"]
    return sorted({round(t, 3) for span in spans for t in (span.start_s, span.end_s)} - {0.0})


def true_changes(ground_truth: Truth) -> list[float]:
    """Return where the engine's motion changes from one lasting regime to another, in seconds."""
    names = lasting_regimes(ground_truth)
    return [float(ground_truth.time_s[k]) for k in range(1, len(names)) if names[k] != names[k - 1]]


def all_cuts(file: Path, signals: Signals) -> dict[str, list[int]]:
    """Return the cuts of each method: ours, in our scan and in PySceneDetect, and PySceneDetect's detectors at their defaults.

    All except "ours in PySceneDetect" get equal pictures; that one gets those of PySceneDetect's own reader, 256 px wide.
    """
    return {
        "ours": cut_frames(signals.content, signals.flow_match, signals.layout_similarity, signals.fps, SceneSettings()),
        "ours in PySceneDetect": _scene_manager_cuts(file),
        "PySceneDetect Adaptive": pyscenedetect_cuts(AdaptiveDetector(), file),
        "PySceneDetect Content": pyscenedetect_cuts(ContentDetector(), file),
        "PySceneDetect Hash": pyscenedetect_cuts(HashDetector(), file),
    }


def _scene_manager_cuts(file: Path) -> list[int]:
    manager = SceneManager()
    manager.add_detector(GameDetector())
    manager.detect_scenes(open_video(str(file)))
    return [start.frame_num for start, _ in manager.get_scene_list()[1:]]


def pyscenedetect_cuts(detector: SceneDetector, file: Path) -> list[int]:
    source = probe(str(file))
    converter, count, cuts = decode.FrameConverter(source, (320, round(source.height * 320 / source.width))), 0, []
    for count, (_, frame) in enumerate(decode.decode(str(file), purpose="bench")):
        cuts += detector.process_frame(FrameTimecode(count, source.fps), converter(frame)[:, :, ::-1])
    return sorted(cut.frame_num for cut in [*cuts, *detector.post_process(FrameTimecode(count, source.fps))])


if __name__ == "__main__":
    main()
