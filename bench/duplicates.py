"""Measure near-duplicates: how many copies of a clip are found, by the kind of copy, and how many clips are taken for copies.

Takes are recordings of which no two show the same play: by default of one game engine on the same maps, with other seeds, so
that they share places, weapons and the first view. Each is cut into clips. Copies are made of some takes, and everything is
compared at once, as `gamecraft curate` does. Found: clips of a copy that are marked as copies of their own take, those whose
time overlaps. False: clips of a take, or of a copy, that are marked as copies of another take.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np

from bench.machine import describe
from curation.near_duplicates import Clip, Copy, DuplicateSettings, Index
from curation.partition.chunks import ScanSettings, measure_fingerprint
from curation.partition.fingerprint import PER_S, Fingerprint, fingerprint, small_luma
from curation.partition.scan import scan
from synth.doom.record import Recording, record

CLIP_S = 6.0
TAKE_S, MAPS, SEEDS = 24.0, (("freedoom2", "MAP01"), ("freedoom1", "E1M1")), (1, 2, 3)
Picture = np.ndarray


@dataclass(frozen=True)
class Kind:
    """A way to copy a video. change: of each picture. speed: how much faster it plays. fps: another rate. start_s: cut off."""

    name: str
    change: Callable[[Picture], Picture] = lambda picture: picture
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "veryfast", "crf": "23"})
    speed: float = 1.0
    fps: float | None = None
    start_s: float = 0.0


def _scaled(scale: float) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        height, width = (int(side * scale) // 2 * 2 for side in picture.shape[:2])
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)

    return change


def _with_bars(picture: Picture) -> Picture:
    bar = picture.shape[0] // 16 * 2
    return np.pad(picture, ((bar, bar), (0, 0), (0, 0)))


def _with_overlay(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    marked = picture.copy()
    marked[height // 20 : height * 3 // 20, width * 4 // 5 : width * 19 // 20] = 240, 200, 40
    return marked


def _zoomed(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    y, x = height // 40 * 2, width // 40 * 2
    return picture[y : height - y, x : width - x]


KINDS = (
    Kind("re-encode, crf 35", options={"preset": "veryfast", "crf": "35"}),
    Kind("re-encode, VP9", codec="libvpx-vp9", options={"crf": "40", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    Kind("half size", _scaled(0.5)),
    Kind("1.5 x size", _scaled(1.5)),
    Kind("bars added", _with_bars),
    Kind("overlay of 1.5 %", _with_overlay),
    Kind("brighter (gamma 0.8)", lambda picture: (255 * (picture / 255.0) ** 0.8).astype(np.uint8)),
    Kind("24 frames a second", fps=24.0),
    Kind("0.37 s cut off", start_s=0.37),
    Kind("1.25 x speed", speed=1.25),
    Kind("5 % cut off each side", _zoomed),
)
"""The copies that are made. The last crops the picture itself, not its bars."""


class _Video(NamedTuple):
    """A video that is compared: a take, or a copy of one."""

    take: int
    kind: Kind | None
    prints: Fingerprint


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment, the share of the cost, and a table of what is found and what is false."""
    parser = argparse.ArgumentParser(prog="gamecraft bench duplicates", description=__doc__.splitlines()[0])
    parser.add_argument("takes", nargs="*", type=Path, help="videos of different play; default: recorded here, six of 24 s")
    parser.add_argument("--copied", type=int, default=3, help="of how many takes copies are made; default 3")
    parser.add_argument("--pairs", type=Path, nargs=2, action="append", default=[], help="two recordings of the same play")
    parser.add_argument("--min-similarity", type=float, default=DuplicateSettings.min_similarity)
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        takes = options.takes or list(_record(Path(folder)))
        print(_cost(takes[0]), flush=True)
        videos = list(_videos(takes, options.copied, options.pairs, Path(folder)))
        print(_table(videos, options.min_similarity))


def _record(folder: Path) -> Iterator[Path]:
    for wad, name in MAPS:
        for seed in SEEDS:
            path = folder / f"{name}-{seed}.mp4"
            record(path, Recording(maps=((wad, name, TAKE_S),), seed=seed, width=320, height=240))
            yield path


def _videos(takes: Sequence[Path], copied: int, pairs: Sequence[Sequence[Path]], folder: Path) -> Iterator[_Video]:
    for number, take in enumerate(takes):
        yield _Video(number, None, measure_fingerprint(str(take)))
    for number, take in enumerate(takes[:copied]):
        for kind in KINDS:
            path = folder / f"copy.{'webm' if 'vpx' in kind.codec else 'mp4'}"
            copy_video(take, path, kind)
            yield _Video(number, kind, measure_fingerprint(str(path)))
    for number, (one, other) in enumerate(pairs, start=len(takes)):
        yield _Video(number, None, measure_fingerprint(str(one)))
        yield _Video(number, Kind("pairs given"), measure_fingerprint(str(other)))


def copy_video(source: Path, target: Path, kind: Kind) -> None:
    """Write a copy of a video of one kind."""
    with av.open(str(source)) as input_, av.open(str(target), "w") as output:
        video, stream, count = input_.streams.video[0], None, 0
        rate = Fraction(kind.fps or video.average_rate or 30).limit_denominator(1000)
        for frame in input_.decode(video):
            time_s = (float(frame.time or 0) - kind.start_s) / kind.speed
            if time_s < 0 or (kind.fps and round(time_s * kind.fps) < count):
                continue
            picture = kind.change(frame.to_ndarray(format="rgb24"))
            stream = stream or _stream(output, kind, rate, picture)
            copied = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            copied.pts, copied.time_base = round(time_s * 90_000), Fraction(1, 90_000)
            output.mux(stream.encode(copied))
            count += 1
        output.mux(stream.encode(None) if stream else [])


def _stream(output: Any, kind: Kind, rate: Fraction, picture: Picture) -> Any:
    stream = output.add_stream(kind.codec, rate=rate, options=kind.options)
    stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
    stream.codec_context.thread_count, stream.codec_context.time_base = 1, Fraction(1, 90_000)
    return stream


def _table(videos: Sequence[_Video], min_similarity: float) -> str:
    """Compare all clips and count, by kind, the clips, those found, and those that are false."""
    with tempfile.TemporaryDirectory() as folder:
        index, clips = Index(folder), []
        for video in videos:
            end_s = float(video.prints.times_s[-1]) + 1 / PER_S
            starts_s = np.arange(0.0, end_s - CLIP_S / 2, CLIP_S)
            spans = [(start, min(start + CLIP_S, end_s)) for start in starts_s.tolist()]
            index.add(video.prints, [Clip(*span, (video.kind is not None,)) for span in spans])
            clips += [(video, *span) for span in spans]
        began = time.process_time()
        copies = index.copies(min_similarity)
        compare_s = time.process_time() - began
    total, found, false, similarity = Counter[str](), Counter[str](), Counter[str](), dict[str, list[float]]()
    for video, _, _ in clips:
        total[_kind(video)] += 1
    for copy in copies:
        name = _kind(clips[copy.clip][0])
        (found if _is_true(copy, clips) else false)[name] += 1
        similarity.setdefault(name, []).append(copy.similarity)
    lines = [f"{'kind of copy':24} {'clips':>6} {'found':>6} {'false':>6}  similarity, least and mean"]
    for name, count in total.items():
        values = similarity.get(name, [])
        about = f"{min(values):.2f} {np.mean(values):.2f}" if values else "-"
        lines.append(f"{name:24} {count:6} {found[name]:6} {false[name]:6}  {about}")
    lines.append(
        f"{len(clips)} clips compared in {1000 * compare_s / len(clips):.2f} CPU-ms a clip, from {min_similarity:g} on"
    )
    return "\n".join(lines)


def _kind(video: _Video) -> str:
    return video.kind.name if video.kind else "none: other takes"


def _is_true(copy: Copy, clips: Sequence[tuple[_Video, float, float]]) -> bool:
    """Return whether both clips show the same play: they are of one take, and of the same time in it."""
    (video, *span), (other, *other_span) = clips[copy.clip], clips[copy.original]
    (start_s, end_s), (other_start_s, other_end_s) = _in_take(video, span), _in_take(other, other_span)
    overlaps = min(end_s, other_end_s) - max(start_s, other_start_s) > 0
    return video.kind is not None and video.take == other.take and overlaps


def _in_take(video: _Video, span: Sequence[float]) -> tuple[float, float]:
    kind = video.kind or Kind("")
    return kind.start_s + kind.speed * span[0], kind.start_s + kind.speed * span[1]


def _cost(take: Path) -> str:
    """Measure what a fingerprint adds to the pass over a video."""
    began = time.process_time()
    signals = scan(str(take), ScanSettings())
    pass_s = time.process_time() - began
    frame = np.random.default_rng(0).integers(0, 256, (180, 320), np.uint8)
    began = time.process_time()
    for _ in range(len(signals.small_frame)):
        small_luma(frame)
    height, width = signals.viewport.static.shape
    fingerprint(signals.times_s[signals.small_frame], signals.small_lumas, signals.viewport.picture, (width, height))
    own_s = time.process_time() - began
    return f"fingerprint: {1000 * own_s:.1f} of {1000 * pass_s:.0f} CPU-ms of the pass over {take.name} ({own_s / pass_s:.2%})"


if __name__ == "__main__":
    main()
