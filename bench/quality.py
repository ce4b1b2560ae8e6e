"""Does the quality score fall as footage gets worse? Footage is damaged by known amounts (`bench.degrade`) and scored.

    python -m bench.quality [FOLDER ...]

Without folders: the shared gameplay and camera footage if $GAMECRAFT_SHARED is set, else Doom, recorded here on maps that
nothing was trained on. Real files went through a codec before, and have a level of damage already that nobody knows; so
footage of 360 lines and more is made half its size first, which leaves little of that (`--as-is` does not). A level means the
same damage for every kind, by a full-reference measure (see `bench.degrade`); of freezes it is the share that really stands
still, the footage's own stills included. Printed are Spearman's rank correlations of score and level: per kind over all clips,
the mean within a clip, and over all kinds and clips at once; beside two measures that know nothing of games: the variance of
the Laplacian, and NIQE where pyiqa is there.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np

from bench import degrade
from bench.degrade import KINDS, Clip, Kind, damaged, gmsd
from bench.machine import describe
from bench.measures import spearman
from curation.errors import Unavailable
from curation.media import decode
from curation.partition import cuts
from curation.partition.optical_flow import WIDTH
from curation.quality.backends import load_iqa
from curation.quality.iqa import Iqa, IqaSettings, fold, frozen_share, luma_plane

LEVELS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.95)
_CLIP_S, _CLIPS = 4.0, 3
_EVERY_S = 1.0
_HIGH = 360  # px from which footage is made smaller
# A clip that stands still by itself for longer than this cannot be made to stand still, and says nothing else about a score.
_STILL = 0.5
_STALLS_S = (0.3, 1.0)


@dataclass(frozen=True)
class Stretch:
    """A few seconds of footage: luma uint8 [N, H, W], small RGB [N, h, w, 3], its rate and its name."""

    name: str
    luma: Clip
    small: np.ndarray
    fps: float

    @property
    def looked_at(self) -> np.ndarray:
        """Which frames a pass would sample, from half a period on."""
        return np.arange(int(self.fps * _EVERY_S / 2), len(self.luma), max(1, int(self.fps * _EVERY_S)))


@dataclass
class Scores:
    """What one measure said: a row (clip, kind, level, damage by GMSD, score) each, and the CPU time it took."""

    rows: list[tuple[str, str, float, float, float]] = field(default_factory=list)
    cpu_s: float = 0.0
    frames: int = 0


Measure = Callable[[Clip, float], float]
"""Sampled pictures and the share of the time that is frozen -> a score, higher is better."""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--backend", default=IqaSettings.backend, help="as a recipe's partition.iqa.backend")
    parser.add_argument("--weights", default=None, help="as a recipe's partition.iqa.weights")
    parser.add_argument("--as-is", action="store_true", help="footage at its own size, with the damage that it has")
    parser.add_argument("--without-niqe", action="store_true", help="it takes a second and more a frame")
    options = parser.parse_args(argv)
    print(describe())
    measures = _measures(IqaSettings(options.backend, weights=options.weights), not options.without_niqe)
    with tempfile.TemporaryDirectory() as folder:
        scores, faults = _score_all(options.folders or _default(Path(folder)), measures, 1 if options.as_is else 2)
    for name, found in scores.items():
        _print(name, found)
    print(f"fault named rightly from level {LEVELS[2]} on: {np.mean(faults):.2f} of {len(faults)}")


def _default(folder: Path) -> list[Path]:
    if shared := os.environ.get("GAMECRAFT_SHARED"):
        return [Path(shared) / "data" / name for name in ("gameplay_real", "real_clips")]
    from synth.doom.record import Recording, record

    for seed, (style, size) in enumerate([("fight", (1280, 720)), ("explore", (640, 480)), ("camera", (800, 450))], start=990):
        maps = [("freedoom2", f"MAP{number}", 4.0) for number in (26, 28, 29)]
        record(folder / f"{style}.mp4", Recording(maps, seed=seed, style=style, width=size[0], height=size[1], crf=10))
    return [folder]


def stretches(file: Path, smaller: int = 1) -> Iterator[Stretch]:
    """Up to three stretches of four seconds, spread over a file; made so many times smaller if they are high enough."""
    source = decode.probe(str(file))
    smaller = smaller if source.height >= _HIGH else 1
    fps, length = source.fps or 25.0, source.duration_s or _CLIP_S
    count = max(1, min(_CLIPS, int(length / _CLIP_S)))
    for number in range(count):
        start = (number + 0.5) * length / count - min(_CLIP_S, length) / 2
        frames = [frame for _, frame in decode.decode(str(file), decode.Span(max(0.0, start), start + _CLIP_S), "bench")]
        if len(frames) > fps:
            small = (WIDTH, round(source.height * WIDTH / source.width / 2) * 2)
            rgb = np.stack([f.reformat(*small, format="rgb24").to_ndarray() for f in frames])
            yield Stretch(f"{file.stem}/{number}", np.stack([_shrunk(luma_plane(f), smaller) for f in frames]), rgb, fps)


def _shrunk(luma_HW: np.ndarray, times: int) -> np.ndarray:
    size = luma_HW.shape[1] // times, luma_HW.shape[0] // times
    return cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA) if times > 1 else luma_HW.copy()


def _measures(settings: IqaSettings, with_niqe: bool) -> dict[str, Measure]:
    measures: dict[str, Measure] = {
        f"iqa ({settings.backend})": _folded(load_iqa(settings)),
        "variance of Laplacian": _laplacian,
    }
    if not with_niqe:
        return measures
    try:
        niqe = load_iqa(IqaSettings("pyiqa:niqe", weights=_niqe_file()))
    except Unavailable as error:
        print(f"without NIQE: {error}")
    else:
        measures["NIQE"] = lambda clip, _: float(np.nanmean(niqe(_frames(clip[:1]))[:, 0]))
    return measures


def _niqe_file() -> str | None:
    """NIQE's parameters among the shared weights, if they are there."""
    file = Path(os.environ.get("GAMECRAFT_SHARED", "")) / "weights" / "iqa-params" / "frames_modelparameters.mat"
    return str(file) if file.is_file() else None


def _folded(rate: Iqa) -> Measure:
    return lambda clip, frozen: fold(rate(_frames(clip)), frozen).iqa or 0.0


def _frames(clip: Clip) -> list[av.VideoFrame]:
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(luma), "gray") for luma in clip]


def _laplacian(clip: Clip, _: float) -> float:
    return float(np.mean([cv2.Laplacian(luma, cv2.CV_32F).var() for luma in clip]))


def _score_all(folders: list[Path], measures: dict[str, Measure], smaller: int) -> tuple[dict[str, Scores], list[bool]]:
    """Every clip at every level of every kind; and whether the embedded network named the kind, where damage is plain."""
    scores, right, left_out = {name: Scores() for name in measures}, [], []
    network = load_iqa(IqaSettings())
    for file in sorted(file for folder in folders for file in folder.iterdir() if file.suffix in (".mp4", ".webm", ".mkv")):
        for stretch in stretches(file, smaller):
            frozen = _frozen(stretch, np.arange(len(stretch.small)))
            if frozen > _STILL:
                left_out.append(stretch.name)
                continue
            for kind, level, pictures, still, damage in _versions(stretch, frozen):
                for name, measure in measures.items():
                    began = time.process_time()
                    score = measure(pictures, still)
                    scores[name].cpu_s += time.process_time() - began
                    scores[name].frames += len(pictures)
                    scores[name].rows.append((stretch.name, kind, level, damage, score))
                if level >= LEVELS[2]:
                    fault = fold(network(_frames(pictures)), still).iqa_fault
                    right.append(fault == (KINDS[kind].fault if kind in KINDS else "frozen"))
    clips = sorted({row[0] for found in scores.values() for row in found.rows})
    print(f"{len(clips)} clips; left out, since they stand still by themselves: {', '.join(left_out) or 'none'}")
    return scores, right


def _versions(stretch: Stretch, frozen: float) -> Iterator[tuple[str, float, Clip, float, float]]:
    """Kind, level, sampled pictures, frozen share and measured damage of each version of a clip."""
    clean = stretch.luma[stretch.looked_at]
    for number, kind in enumerate(KINDS.values()):
        for level in LEVELS:
            if np.isnan(degrade.amount_of(kind, level)):
                continue
            pictures = _pictures(stretch, kind, level, seed=number)
            yield kind.name, level, pictures, frozen, float(np.mean([gmsd(a, b) for a, b in zip(clean, pictures, strict=True)]))
    for level in LEVELS:
        shown = _stalled(stretch, level)
        damage = np.mean([gmsd(a, b) for a, b in zip(stretch.luma[::5], stretch.luma[shown][::5], strict=True)])
        pictures = stretch.luma[shown][stretch.looked_at]
        yield "freeze", _really_still(stretch, shown), pictures, _frozen(stretch, shown), float(damage)


def _pictures(stretch: Stretch, kind: Kind, level: float, seed: int) -> Clip:
    """The sampled frames at a level; a codec must see the whole clip, other kinds damage each picture by itself."""
    if kind.fault == "compressed":
        return damaged(stretch.luma, kind, level, seed)[stretch.looked_at]
    return damaged(stretch.luma[stretch.looked_at], kind, level, seed)


def _stalled(stretch: Stretch, share: float) -> np.ndarray:
    """Which frame is shown in each frame's place: stalls of 0.3 to 1 s until they make up the share."""
    rng, shown = np.random.default_rng(3), np.arange(len(stretch.luma))
    while np.mean(_still(shown, stretch.fps)) < share:
        first = int(rng.integers(len(shown)))
        last = first + int(rng.uniform(*_STALLS_S) * stretch.fps)
        shown[first:last] = shown[first]
    return shown


def _still(shown: np.ndarray, fps: float) -> np.ndarray:
    """Which frames are part of a stall: shown for at least the shortest one."""
    _, where, counts = np.unique(shown, return_inverse=True, return_counts=True)
    return (counts >= _STALLS_S[0] * fps / 2)[where]


def _really_still(stretch: Stretch, shown: np.ndarray) -> float:
    """The share that stands still with these frames shown: what was made to, and what the footage had of its own."""
    return _still_share(stretch.small[shown], stretch.fps)


def _frozen(stretch: Stretch, shown: np.ndarray) -> float:
    """The frozen share that a pass finds after these frames went through an ordinary encoding."""
    return _still_share(degrade.coded(stretch.small[shown], "libx264", {"crf": "23", "preset": "veryfast"}), stretch.fps)


def _still_share(rgb: np.ndarray, fps: float) -> float:
    score = cuts.ContentScore()
    content = np.array([score(np.ascontiguousarray(picture)) for picture in rgb])
    return frozen_share(np.arange(len(rgb)) / fps, content, len(rgb) / fps)


def _print(name: str, found: Scores) -> None:
    print(f"\n{name}: {1000 * found.cpu_s / max(found.frames, 1):.1f} CPU-ms a frame")
    print(f"{'':10} over clips   within a clip")
    for kind in dict.fromkeys(row[1] for row in found.rows):
        rows = [row for row in found.rows if row[1] == kind]
        clips = dict.fromkeys(row[0] for row in rows)
        within = [_rho([row for row in rows if row[0] == clip]) for clip in clips]
        print(f"{kind:10} {_rho(rows):10.3f}   {np.mean(within):13.3f}")
    by_measure = _rho(found.rows, measured=True)
    print(f"{'all':10} {_rho(found.rows):10.3f}   (with the damage as measured on each clip: {by_measure:.3f})")


def _rho(rows: list[tuple[str, str, float, float, float]], measured: bool = False) -> float:
    """Rank correlation of the score with the lack of damage; 0 where one does not vary."""
    damage = np.array([row[3] if measured else row[2] for row in rows])
    return float(np.nan_to_num(spearman(-damage, np.array([row[4] for row in rows]))))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
