"""Does the quality score fall as footage gets worse? Damage footage by known amounts (`bench.degrade`) and score it.

    python -m bench.quality [FOLDER ...]

Without folders it uses the shared gameplay and camera footage if $GAMECRAFT_SHARED is set, else recordings of Doom on maps on
which nothing was trained. Real files have been through a codec and already have an unknown level of damage. So footage of 360
lines and more is first shrunk to half its size, which removes most of that damage (`--as-is` skips this).

A level means the same damage for every kind, by a full-reference measure (see `bench.degrade`). For freezes the level is the
share of the time that stands still, with the footage's own stills. The output has Spearman's rank correlations of score and
level: for each kind over all clips, the mean within a clip, and over all kinds and clips together. Two measures that know
nothing of games are the baselines: the variance of the Laplacian, and NIQE if pyiqa is installed.
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
from bench.degrade import KINDS, DamageKind, LumaClip, apply_damage, gmsd
from bench.machine import describe
from bench.measures import spearman
from curation.errors import Unavailable
from curation.media import decode
from curation.media.source import probe
from curation.partition import cuts
from curation.partition.optical_flow import WIDTH
from curation.quality.backends import load_iqa
from curation.quality.iqa import Iqa, IqaSettings, aggregate_quality, frozen_share, luma_plane

LEVELS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.95)
_CLIP_S, _CLIPS = 4.0, 3
_EVERY_S = 1.0
_MIN_SHRINK_HEIGHT = 360  # px from which footage is shrunk
# A clip whose own share of still frames is larger than this is excluded: freezes can hardly be added to it, and they hide the
# other damage.
_MAX_OWN_STILL = 0.5
_STALLS_S = (0.3, 1.0)


@dataclass(frozen=True)
class FootageClip:
    """A few seconds of footage: luma uint8 [N, H, W], small RGB [N, h, w, 3], frame rate and name."""

    name: str
    luma: LumaClip
    small: np.ndarray
    fps: float

    @property
    def sampled_frames(self) -> np.ndarray:
        """The indices of the frames that a scan would sample, beginning after half a period."""
        return np.arange(int(self.fps * _EVERY_S / 2), len(self.luma), max(1, int(self.fps * _EVERY_S)))


@dataclass
class MeasureScores:
    """The scores of one measure, as rows (clip, kind, level, damage by GMSD, score), and its CPU time."""

    rows: list[tuple[str, str, float, float, float]] = field(default_factory=list)
    cpu_s: float = 0.0
    frames: int = 0


Measure = Callable[[LumaClip, float], float]
"""Sampled pictures and the share of the time that is frozen -> a score, higher is better."""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--backend", default=IqaSettings.backend, help="as a recipe's partition.iqa.backend")
    parser.add_argument("--weights", default=None, help="as a recipe's partition.iqa.weights")
    parser.add_argument("--as-is", action="store_true", help="keep the footage's size, and so the damage of its codec")
    parser.add_argument("--without-niqe", action="store_true", help="skip NIQE, which takes a second and more per frame")
    options = parser.parse_args(argv)
    print(describe())
    measures = _measures(IqaSettings(options.backend, weights=options.weights), not options.without_niqe)
    with tempfile.TemporaryDirectory() as folder:
        scores, faults = _score_all(options.folders or _default_folders(Path(folder)), measures, 1 if options.as_is else 2)
    for name, results in scores.items():
        _print(name, results)
    print(f"correct fault from level {LEVELS[2]} on: {np.mean(faults):.2f} of {len(faults)}")


def _default_folders(folder: Path) -> list[Path]:
    if shared := os.environ.get("GAMECRAFT_SHARED"):
        return [Path(shared) / "data" / name for name in ("gameplay_real", "real_clips")]
    from synth.doom.record import Recording, record

    for seed, (style, size) in enumerate([("fight", (1280, 720)), ("explore", (640, 480)), ("camera", (800, 450))], start=990):
        maps = [("freedoom2", f"MAP{number}", 4.0) for number in (26, 28, 29)]
        record(folder / f"{style}.mp4", Recording(maps, seed=seed, style=style, width=size[0], height=size[1], crf=10))
    return [folder]


def footage_clips(file: Path, shrink_factor: int = 1) -> Iterator[FootageClip]:
    """Yield up to three clips of four seconds, spread over a file, and shrunk by a factor if they are high enough."""
    source = probe(str(file))
    shrink_factor = shrink_factor if source.height >= _MIN_SHRINK_HEIGHT else 1
    fps, length = source.fps or 25.0, source.duration_s or _CLIP_S
    count = max(1, min(_CLIPS, int(length / _CLIP_S)))
    for number in range(count):
        start = (number + 0.5) * length / count - min(_CLIP_S, length) / 2
        frames = [frame for _, frame in decode.decode(str(file), decode.Span(max(0.0, start), start + _CLIP_S), "bench")]
        if len(frames) > fps:
            small = (WIDTH, round(source.height * WIDTH / source.width / 2) * 2)
            rgb = np.stack([f.reformat(*small, format="rgb24").to_ndarray() for f in frames])
            yield FootageClip(
                f"{file.stem}/{number}", np.stack([_shrink(luma_plane(f), shrink_factor) for f in frames]), rgb, fps
            )


def _shrink(luma_HW: np.ndarray, times: int) -> np.ndarray:
    size = luma_HW.shape[1] // times, luma_HW.shape[0] // times
    return cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA) if times > 1 else luma_HW.copy()


def _measures(settings: IqaSettings, with_niqe: bool) -> dict[str, Measure]:
    measures: dict[str, Measure] = {
        f"iqa ({settings.backend})": _iqa_measure(load_iqa(settings)),
        "variance of Laplacian": _laplacian,
    }
    if not with_niqe:
        return measures
    try:
        niqe = load_iqa(IqaSettings("pyiqa:niqe", weights=_niqe_file()))
    except Unavailable as error:
        print(f"without NIQE: {error}")
    else:
        measures["NIQE"] = lambda clip, _: float(np.nanmean(niqe(_video_frames(clip[:1]))[:, 0]))
    return measures


def _niqe_file() -> str | None:
    """Return the file with NIQE's parameters among the shared weights, or None if it is not there."""
    file = Path(os.environ.get("GAMECRAFT_SHARED", "")) / "weights" / "iqa-params" / "frames_modelparameters.mat"
    return str(file) if file.is_file() else None


def _iqa_measure(rate: Iqa) -> Measure:
    return lambda clip, frozen: aggregate_quality(rate(_video_frames(clip)), frozen).iqa or 0.0


def _video_frames(clip: LumaClip) -> list[av.VideoFrame]:
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(luma), "gray") for luma in clip]


def _laplacian(clip: LumaClip, _: float) -> float:
    return float(np.mean([cv2.Laplacian(luma, cv2.CV_32F).var() for luma in clip]))


def _score_all(
    folders: list[Path], measures: dict[str, Measure], shrink_factor: int
) -> tuple[dict[str, MeasureScores], list[bool]]:
    """Score every clip at every level of every kind. Also return whether the embedded network names the fault."""
    scores, fault_named, excluded = {name: MeasureScores() for name in measures}, [], []
    network = load_iqa(IqaSettings())
    for file in sorted(file for folder in folders for file in folder.iterdir() if file.suffix in (".mp4", ".webm", ".mkv")):
        for clip in footage_clips(file, shrink_factor):
            frozen = _measured_frozen_share(clip, np.arange(len(clip.small)))
            if frozen > _MAX_OWN_STILL:
                excluded.append(clip.name)
                continue
            for kind, level, pictures, still, damage in _damaged_versions(clip, frozen):
                for name, measure in measures.items():
                    began = time.process_time()
                    score = measure(pictures, still)
                    scores[name].cpu_s += time.process_time() - began
                    scores[name].frames += len(pictures)
                    scores[name].rows.append((clip.name, kind, level, damage, score))
                if level >= LEVELS[2]:
                    fault = aggregate_quality(network(_video_frames(pictures)), still).iqa_fault
                    fault_named.append(fault == (KINDS[kind].fault if kind in KINDS else "frozen"))
    clips = sorted({row[0] for results in scores.values() for row in results.rows})
    print(f"{len(clips)} clips; excluded, since the footage itself stands still: {', '.join(excluded) or 'none'}")
    return scores, fault_named


def _damaged_versions(clip: FootageClip, frozen: float) -> Iterator[tuple[str, float, LumaClip, float, float]]:
    """Yield kind, level, sampled pictures, frozen share and measured damage of each version of a clip."""
    clean = clip.luma[clip.sampled_frames]
    for number, kind in enumerate(KINDS.values()):
        for level in LEVELS:
            if np.isnan(degrade.amount_of(kind, level)):
                continue
            pictures = _damaged_pictures(clip, kind, level, seed=number)
            yield kind.name, level, pictures, frozen, float(np.mean([gmsd(a, b) for a, b in zip(clean, pictures, strict=True)]))
    for level in LEVELS:
        shown = _add_stalls(clip, level)
        damage = np.mean([gmsd(a, b) for a, b in zip(clip.luma[::5], clip.luma[shown][::5], strict=True)])
        pictures = clip.luma[shown][clip.sampled_frames]
        yield "freeze", _true_still_share(clip, shown), pictures, _measured_frozen_share(clip, shown), float(damage)


def _damaged_pictures(clip: FootageClip, kind: DamageKind, level: float, seed: int) -> LumaClip:
    """Return the sampled frames at a level. A codec needs the whole clip, other kinds damage each picture on its own."""
    if kind.fault == "compressed":
        return apply_damage(clip.luma, kind, level, seed)[clip.sampled_frames]
    return apply_damage(clip.luma[clip.sampled_frames], kind, level, seed)


def _add_stalls(clip: FootageClip, share: float) -> np.ndarray:
    """Return the index of the frame shown at each place, with stalls of 0.3 to 1 s that together make up the share."""
    rng, shown = np.random.default_rng(3), np.arange(len(clip.luma))
    while np.mean(_in_stall(shown, clip.fps)) < share:
        first = int(rng.integers(len(shown)))
        last = first + int(rng.uniform(*_STALLS_S) * clip.fps)
        shown[first:last] = shown[first]
    return shown


def _in_stall(shown: np.ndarray, fps: float) -> np.ndarray:
    """Return which frames are part of a stall, because they are shown for at least half of the shortest stall."""
    _, index, counts = np.unique(shown, return_inverse=True, return_counts=True)
    return (counts >= _STALLS_S[0] * fps / 2)[index]


def _true_still_share(clip: FootageClip, shown: np.ndarray) -> float:
    """Return the share of still time if these frames are shown: the added stalls and the footage's own stills."""
    return _still_share(clip.small[shown], clip.fps)


def _measured_frozen_share(clip: FootageClip, shown: np.ndarray) -> float:
    """Return the frozen share that a scan measures after an ordinary encoding of these frames."""
    return _still_share(degrade.encode_decode(clip.small[shown], "libx264", {"crf": "23", "preset": "veryfast"}), clip.fps)


def _still_share(rgb: np.ndarray, fps: float) -> float:
    score = cuts.ContentScore()
    content = np.array([score(np.ascontiguousarray(picture)) for picture in rgb])
    return frozen_share(np.arange(len(rgb)) / fps, content, len(rgb) / fps)


def _print(name: str, results: MeasureScores) -> None:
    print(f"\n{name}: {1000 * results.cpu_s / max(results.frames, 1):.1f} CPU-ms per frame")
    print(f"{'':10} over clips   within a clip")
    for kind in dict.fromkeys(row[1] for row in results.rows):
        rows = [row for row in results.rows if row[1] == kind]
        clips = dict.fromkeys(row[0] for row in rows)
        within = [_rank_correlation([row for row in rows if row[0] == clip]) for clip in clips]
        print(f"{kind:10} {_rank_correlation(rows):10.3f}   {np.mean(within):13.3f}")
    by_measure = _rank_correlation(results.rows, measured=True)
    print(f"{'all':10} {_rank_correlation(results.rows):10.3f}   (with the damage as measured on each clip: {by_measure:.3f})")


def _rank_correlation(rows: list[tuple[str, str, float, float, float]], measured: bool = False) -> float:
    """Return the rank correlation of the score with the lack of damage, or 0 if one of them does not vary."""
    damage = np.array([row[3] if measured else row[2] for row in rows])
    return float(np.nan_to_num(spearman(-damage, np.array([row[4] for row in rows]))))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
