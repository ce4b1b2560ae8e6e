"""Does the quality score fall as footage gets worse? Damage footage by known amounts (`bench.degrade`) and score it.

    python -m bench.quality [FOLDER ...] [--lossless FOLDER ...] [--compare WEIGHTS ...] [--features FILE]

Without folders it uses the shared gameplay and camera footage if $GAMECRAFT_SHARED is set, else recordings of Doom on maps on
which nothing was trained. Real files have been through a codec and already have an unknown level of damage. So footage of 360
lines and more is first shrunk to half its size, which removes most of that damage (`--as-is` skips this). Footage after
`--lossless` keeps its size: `python -m synth.engines take` records it with `--crf 0`. Files may be named instead of folders.
`--features` stores the network's input, or reads it: then other weights are rated within seconds.

A level means the same damage for every kind, by a full-reference measure (see `bench.degrade`). For freezes the level is the
share of the time that stands still, with the footage's own stills. The output has Spearman's rank correlations of score and
level: for each kind over all clips, the mean within a clip, over all kinds and clips together, and over those of each look,
which is the first word of a file's name. Two measures that know nothing of games are the baselines: the variance of the
Laplacian, and NIQE if pyiqa is installed. GMSD, which has the original to compare with, says how well the damage itself
follows the level.
"""

import argparse
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from curation.quality.embedded_backend import WEIGHTS, load_weights, rate_features, with_coding
from curation.quality.features import patch_features
from curation.quality.iqa import Iqa, IqaSettings, Quality, aggregate_quality, frozen_share, luma_plane, select_patches
from curation.quality.luminance import QualityLimits

LEVELS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.95)
_CLIP_S, _CLIPS = 4.0, 3
_EVERY_S = 1.0
_MIN_SHRINK_HEIGHT = 360  # px from which footage is shrunk
# A clip whose own share of still frames is larger than this is excluded: freezes can hardly be added to it, and they hide the
# other damage.
_MAX_OWN_STILL = 0.5
_STALLS_S = (0.3, 1.0)
_LIMITS = (0.35, 0.4, 0.45, 0.5, 0.6)


@dataclass(frozen=True)
class FootageClip:
    """A few seconds of footage: luma uint8 [N, H, W], small RGB [N, h, w, 3], frame rate and name."""

    name: str
    luma: LumaClip
    small: np.ndarray
    fps: float

    @property
    def look(self) -> str:
        """Which footage looks like it: the first word of the file's name."""
        return re.split(r"[\d/_-]", self.name)[0]

    @property
    def sampled_frames(self) -> np.ndarray:
        """The indices of the frames that a scan would sample, beginning after half a period."""
        return np.arange(int(self.fps * _EVERY_S / 2), len(self.luma), max(1, int(self.fps * _EVERY_S)))


class ScoreRow(NamedTuple):
    """The score of one version of a clip."""

    clip: str
    look: str
    kind: str
    level: float
    damage: float  # by GMSD
    score: float


class Version(NamedTuple):
    """A clip at a level of a kind of damage: what a scan knows of it, and what the damage is."""

    kind: str
    level: float
    pictures: LumaClip  # the sampled frames
    coded: np.ndarray  # the level by the quantiser of each, NaN where it was not encoded
    frozen: float
    damage: float  # by GMSD


Measure = Callable[[Version], float]
"""A score, higher is better."""


@dataclass
class RatedVersion:
    """A version of a clip without its pictures: the embedded network's input, and the scores of other measures."""

    clip: str
    look: str
    kind: str
    level: float
    damage: float
    frozen: float
    coded: np.ndarray  # [S]
    features: list[np.ndarray]  # of each sampled frame
    scores: dict[str, float]

    def quality(self, weights: dict[str, np.ndarray], stream: bool) -> Quality:
        """Rate it with the embedded network. stream: with what the frames' quantisers say, as in a scan of encoded footage."""
        rows = [rate_features(features_PF, weights) for features_PF in self.features]
        if stream:
            rows = [with_coding(row, None if np.isnan(of) else of) for row, of in zip(rows, self.coded, strict=True)]
        return aggregate_quality(np.stack(rows), self.frozen)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--backend", default=IqaSettings.backend, help="as a recipe's partition.iqa.backend")
    parser.add_argument("--weights", default=None, help="as a recipe's partition.iqa.weights")
    parser.add_argument("--lossless", nargs="+", type=Path, default=[], help="folders whose footage keeps its size")
    parser.add_argument("--features", type=Path, help="where the network's input is stored, or read if it is there")
    parser.add_argument("--compare", nargs="+", default=[], help="other weights of the embedded network, for the same run")
    parser.add_argument("--as-is", action="store_true", help="keep the footage's size, and so the damage of its codec")
    parser.add_argument("--without-niqe", action="store_true", help="skip NIQE, which takes a second and more per frame")
    options = parser.parse_args(argv)
    print(describe())
    if options.features and options.features.exists():
        versions = _load_versions(options.features)
    else:
        measures = _measures(IqaSettings(options.backend, weights=options.weights), not options.without_niqe)
        with tempfile.TemporaryDirectory() as folder:
            folders = options.folders or ([] if options.lossless else _default_folders(Path(folder)))
            factors = dict.fromkeys(folders, 1 if options.as_is else 2) | dict.fromkeys(options.lossless, 1)
            versions = _rate_versions(factors, measures)
        if options.features:
            _save_versions(options.features, versions)
    for file in [WEIGHTS, *options.compare]:
        weights = load_weights(str(file))
        for stream in (False, True):
            quality = [version.quality(weights, stream) for version in versions]
            name = f"iqa ({Path(file).name})" + (" with the stream's quantiser" if stream else "")
            _print(name, versions, [one.iqa or 0.0 for one in quality], QualityLimits().min_iqa)
            if file == WEIGHTS and stream:
                _print_limits(versions, [one.iqa or 0.0 for one in quality])
        named = [one.iqa_fault == (KINDS[version.kind].fault if version.kind in KINDS else "frozen")
                 for one, version in zip(quality, versions, strict=True) if version.level >= LEVELS[2]]  # fmt: skip
        print(f"correct fault from level {LEVELS[2]} on: {np.mean(named):.2f} of {len(named)}")
    for name in versions[0].scores:
        _print(name, versions, [version.scores[name] for version in versions])


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
        "variance of Laplacian": _laplacian,
        "GMSD from the original": lambda version: -version.damage,
    }
    if settings.backend != "embedded":
        measures[settings.backend] = _iqa_measure(load_iqa(settings))
    if not with_niqe:
        return measures
    try:
        niqe = load_iqa(IqaSettings("pyiqa:niqe", weights=_niqe_file()))
    except Unavailable as error:
        print(f"without NIQE: {error}")
    else:
        measures["NIQE"] = lambda version: float(np.nanmean(niqe(_video_frames(version.pictures[:1]))[:, 0]))
    return measures


def _niqe_file() -> str | None:
    """Return the file with NIQE's parameters among the shared weights, or None if it is not there."""
    file = Path(os.environ.get("GAMECRAFT_SHARED", "")) / "weights" / "iqa-params" / "frames_modelparameters.mat"
    return str(file) if file.is_file() else None


def _iqa_measure(rate: Iqa) -> Measure:
    return lambda version: aggregate_quality(rate(_video_frames(version.pictures)), version.frozen).iqa or 0.0


def _video_frames(clip: LumaClip) -> list[av.VideoFrame]:
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(luma), "gray") for luma in clip]


def _laplacian(version: Version) -> float:
    return float(np.mean([cv2.Laplacian(luma, cv2.CV_32F).var() for luma in version.pictures]))


def _rate_versions(factors: dict[Path, int], measures: dict[str, Measure]) -> list[RatedVersion]:
    """Measure every clip of some files or folders, each shrunk by a factor, at every level of every kind."""
    rated, excluded, cpu_s, frames = [], [], 0.0, 0
    given = [(path, factor) for path, factor in factors.items() if path.is_file()]
    files = given + [(file, factor) for path, factor in factors.items() if path.is_dir() for file in path.iterdir()]
    for file, factor in sorted((file, factor) for file, factor in files if file.suffix in (".mp4", ".webm", ".mkv")):
        for clip in footage_clips(file, factor):
            frozen = _measured_frozen_share(clip, np.arange(len(clip.small)))
            if frozen > _MAX_OWN_STILL:
                excluded.append(clip.name)
                continue
            for version in damaged_versions(clip, frozen):
                began_s = time.process_time()
                features = [_features(picture) for picture in version.pictures]
                cpu_s, frames = cpu_s + time.process_time() - began_s, frames + len(features)
                scores = {name: measure(version) for name, measure in measures.items()}
                about = clip.name, clip.look, version.kind, version.level, version.damage, version.frozen
                rated.append(RatedVersion(*about, version.coded, features, scores))
    clips = {version.clip for version in rated}
    print(f"{len(clips)} clips; excluded, since the footage itself stands still: {', '.join(excluded) or 'none'}")
    print(f"the embedded network's input: {1000 * cpu_s / max(frames, 1):.1f} CPU-ms per frame")
    return rated


def _features(luma_HW: np.ndarray) -> np.ndarray:
    squares = select_patches(luma_HW)
    return patch_features(squares) if len(squares) else np.empty((0, 0), np.float32)


_COLUMNS = ("clip", "look", "kind", "level", "damage", "frozen")


def _save_versions(file: Path, versions: list[RatedVersion]) -> None:
    columns = {name: np.array([getattr(version, name) for version in versions]) for name in _COLUMNS}
    frames = [features_PF for version in versions for features_PF in version.features]
    counts = np.array([len(features_PF) for features_PF in frames])
    columns |= {f"score.{name}": np.array([version.scores[name] for version in versions]) for name in versions[0].scores}
    coded, samples = np.concatenate([v.coded for v in versions]), np.array([len(v.coded) for v in versions])
    np.savez(file, allow_pickle=False, features=np.concatenate(frames), patches=counts, coded=coded, samples=samples, **columns)


def _load_versions(file: Path) -> list[RatedVersion]:
    with np.load(file) as stored:
        columns = {name: stored[name] for name in stored.files}
    frames = np.split(columns["features"], np.cumsum(columns["patches"])[:-1])
    ends = np.cumsum(columns["samples"])
    scores = [name for name in columns if name.startswith("score.")]
    versions = []
    for k, end in enumerate(ends):
        about: dict[str, Any] = {name: columns[name][k].item() for name in _COLUMNS}
        own = slice(end - columns["samples"][k], end)
        named = {name.removeprefix("score."): float(columns[name][k]) for name in scores}
        versions.append(RatedVersion(**about, coded=columns["coded"][own], features=frames[own], scores=named))
    return versions


def damaged_versions(clip: FootageClip, frozen: float) -> Iterator[Version]:
    """Yield each version of a clip whose own share of frozen time is known."""
    clean = clip.luma[clip.sampled_frames]
    for number, kind in enumerate(KINDS.values()):
        for level in LEVELS:
            if np.isnan(degrade.amount_of(kind, level)):
                continue
            pictures, coded = _damaged_pictures(clip, kind, level, seed=number)
            damage = float(np.mean([gmsd(a, b) for a, b in zip(clean, pictures, strict=True)]))
            yield Version(kind.name, level, pictures, coded, frozen, damage)
    for level in LEVELS:
        shown = _add_stalls(clip, level)
        damage = float(np.mean([gmsd(a, b) for a, b in zip(clip.luma[::5], clip.luma[shown][::5], strict=True)]))
        pictures = clip.luma[shown][clip.sampled_frames]
        still, frozen_now = _true_still_share(clip, shown), _measured_frozen_share(clip, shown)
        yield Version("freeze", still, pictures, np.full(len(pictures), np.nan), frozen_now, damage)


def _damaged_pictures(clip: FootageClip, kind: DamageKind, level: float, seed: int) -> tuple[LumaClip, np.ndarray]:
    """Return the sampled frames at a level, and the level that the quantiser of each stands for.

    A codec needs the whole clip. Other kinds damage each picture on its own.
    """
    at = clip.sampled_frames
    if kind.fault == "compressed" and level > 0:
        options = degrade.encoder_options(kind.name, degrade.amount_of(kind, level))
        coded, levels = degrade.encode_decode_levels(clip.luma, *options)
        return coded[at], levels[at]
    return apply_damage(clip.luma[at], kind, level, seed), np.full(len(at), np.nan)


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


def _print(name: str, versions: list[RatedVersion], scores: list[float], limit: float | None = None) -> None:
    rows = [ScoreRow(v.clip, v.look, v.kind, v.level, v.damage, score) for v, score in zip(versions, scores, strict=True)]
    print(f"\n{name}")
    print(f"{'':10} over clips   within a clip")
    for kind, of_kind in _grouped(rows, "kind").items():
        within = [_rank_correlation(of_clip) for of_clip in _grouped(of_kind, "clip").values()]
        print(f"{kind:10} {_rank_correlation(of_kind):10.3f}   {np.mean(within):13.3f}")
    by_measure = _rank_correlation(rows, measured=True)
    print(f"{'all':10} {_rank_correlation(rows):10.3f}   (with the damage as measured on each clip: {by_measure:.3f})")
    looks = _grouped(rows, "look")
    print("by look:", ", ".join(f"{look} {_rank_correlation(of_look):.3f}" for look, of_look in looks.items()))
    if limit is not None:
        originals = {look: {row.clip: row.score for row in of_look if row.level == 0} for look, of_look in looks.items()}
        worst = ", ".join(f"{look} {min(of_look.values()):.2f}" for look, of_look in originals.items() if of_look)
        below = sum(score < limit for of_look in originals.values() for score in of_look.values())
        print(f"originals below {limit}: {below}; the worst of each look: {worst}")


def _print_limits(versions: list[RatedVersion], scores: list[float]) -> None:
    """Print the share of the versions below each limit, by level, over all kinds but freezes."""
    levels = np.array([version.level if version.kind in KINDS else np.nan for version in versions])
    print(f"below a limit, at level {'  '.join(f'{level:4}' for level in LEVELS)}")
    for limit in _LIMITS:
        shares = [np.mean(np.array(scores)[levels == level] < limit) for level in LEVELS]
        print(f"{limit:22} {'  '.join(f'{share:4.2f}' for share in shares)}")


def _grouped(rows: list[ScoreRow], column: str) -> dict[str, list[ScoreRow]]:
    groups: dict[str, list[ScoreRow]] = {}
    for row in rows:
        groups.setdefault(getattr(row, column), []).append(row)
    return groups


def _rank_correlation(rows: list[ScoreRow], measured: bool = False) -> float:
    """Return the rank correlation of the score with the lack of damage, or 0 if one of them does not vary."""
    damage = np.array([row.damage if measured else row.level for row in rows])
    return float(np.nan_to_num(spearman(-damage, np.array([row.score for row in rows]))))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
