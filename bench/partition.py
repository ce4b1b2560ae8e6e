"""Cuts and control regimes against the engine's truth, on recordings made here (seeds and maps that nothing was tuned on).

Cuts: F1 of ours beside PySceneDetect's AdaptiveDetector and ContentDetector at their defaults, on the same frames. Regimes: the
share of flow pairs whose name is the engine's, beside always answering the most frequent name; correlation of the turn rate.

    python bench/partition.py [RECORDING.mp4 ...]      (each with its .jsonl beside it)
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from machine import describe
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from curation import action, scenes, video
from curation.action import RegimeSettings
from curation.scan import ScanSettings, Signals, scan
from curation.scenes import SceneSettings
from synth.doom import truth
from synth.doom.record import Recording, record

_NEAR_FRAMES = 2  # a cut found this close to the true one counts
_MAPS = [("freedoom1", "E1M5"), ("freedoom2", "MAP02"), ("freedoom1", "E1M6"), ("freedoom2", "MAP25"), ("freedoom1", "E1M3")]


def main() -> None:
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(name) for name in sys.argv[1:]] or _record(Path(folder))
        cuts: dict[str, Counter[str]] = {name: Counter() for name in ("ours", "AdaptiveDetector", "ContentDetector")}
        minutes = 0.0
        for file in files:
            signals, told = scan(str(file), ScanSettings()), truth.read_truth(file.with_suffix(".jsonl"))
            minutes += signals.end_s / 60
            for name, found in _all_cuts(file, signals).items():
                cuts[name] += _matched(found, told.cuts)
            print(f"{file.name:16} {_regimes(signals, told)}")
        for name, count in cuts.items():
            print(f"cuts, {name:17} {_f1(count)}, {count['false'] / minutes:.1f} false a minute of {minutes:.1f}")


def _record(folder: Path) -> list[Path]:
    files = []
    for seed, (style, hud) in enumerate([("explore", True), ("fight", True), ("camera", False)], start=301):
        files.append(folder / f"{style}.mp4")
        record(files[-1], Recording([(*game, 10.0) for game in _MAPS], seed=seed, style=style, hud=hud, weapon=hud))
    return files


def _all_cuts(file: Path, signals: Signals) -> dict[str, list[int]]:
    return {
        "ours": scenes.cut_frames(signals.content, signals.explained, signals.fps, SceneSettings()),
        "AdaptiveDetector": _theirs(AdaptiveDetector(), file),
        "ContentDetector": _theirs(ContentDetector(), file),
    }


def _theirs(detector: AdaptiveDetector | ContentDetector, file: Path) -> list[int]:
    """The detector's own cuts over the same small frames."""
    source = video.probe(str(file))
    painter, count, cuts = video.Painter(source, (320, round(source.height * 320 / source.width))), 0, []
    for count, (_, frame) in enumerate(video.decode(str(file), purpose="bench")):
        cuts += detector.process_frame(FrameTimecode(count, source.fps), painter(frame)[:, :, ::-1])
    return sorted(cut.frame_num for cut in [*cuts, *detector.post_process(FrameTimecode(count, source.fps))])


def _matched(found: list[int], true: tuple[int, ...]) -> Counter[str]:
    hits = [cut for cut in true if any(abs(cut - other) <= _NEAR_FRAMES for other in found)]
    return Counter({"hit": len(hits), "missed": len(true) - len(hits), "false": len(found) - len(hits)})


def _f1(count: Counter[str]) -> str:
    score = 2 * count["hit"] / max(1, 2 * count["hit"] + count["missed"] + count["false"])
    return f"F1 {score:.2f} ({count['hit']} of {count['hit'] + count['missed']} found, {count['false']} false)"


def _regimes(signals: Signals, told: truth.Truth) -> str:
    before = signals.pair_frame - 1
    names = np.array(action.regime_names(signals.motion, signals.pair_times_s, signals.fps, RegimeSettings()))
    true = np.array(truth.regimes(told))[before]
    frequent = Counter(true.tolist()).most_common(1)[0][1] / len(true)
    turn = action.smooth(-truth.yaw_rate_deg_s(told)[before], signals.pair_times_s)
    found = action.smooth(signals.motion.rates()[:, 0], signals.pair_times_s)
    same = np.corrcoef(turn, found)[0, 1]
    return f"regime right {np.mean(names == true):.2f} (most frequent name {frequent:.2f}), turn rate correlation {same:.2f}"


if __name__ == "__main__":
    main()
