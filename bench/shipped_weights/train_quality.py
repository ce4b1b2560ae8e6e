"""Train the embedded quality network (`curation.quality.embedded_backend`) on clean pictures damaged by known amounts.

    python -m bench.shipped_weights.train_quality build FOLDER                        gather, collect and train; about an hour
    python -m bench.shipped_weights.train_quality collect FOLDER... --out DATA.npz    damaged patches and their levels
    python -m bench.shipped_weights.train_quality train DATA.npz --held HELD.npz      write the weights, print figures
    python -m bench.shipped_weights.train_quality levels FOOTAGE...                   the table of amounts for `bench.degrade`

The weights go to `curation/quality/iqa_net.npz`; `docs/models/quality.md` is their card. Seeds are fixed: equal data give an
equal network on equal machines.
"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench import degrade
from bench.degrade import KINDS, Clip, Kind
from bench.quality import stretches
from bench.shipped_weights.gather import gather
from bench.shipped_weights.material import Material
from curation.quality.embedded_backend import WEIGHTS
from curation.quality.iqa import FAULTS, PATCH, patches

SETS = {"train": ((31, 250, False), (32, 250, False), (33, 250, False), (34, 180, True)), "held": ((78, 60, False),)}
"""What the shipped weights saw: seed, snippets, whether of worlds without textures, of each set."""
EPOCHS = 18
_PER_FRAME = 16
_PRESETS = ("ultrafast", "superfast", "fast", "medium")
_UPSCALERS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
_CLEAN = -1
_LOOKED_AT = [5, 13]  # frames of a snippet: a codec has left its first picture behind
_UNSEEN = 0.06  # a level under this counts as clean where it is measured
Rng = np.random.Generator


def collect(folders: list[Path], snippets: int, seed: int, workers: int, plain: bool = False) -> dict[str, np.ndarray]:
    """Damaged frames: patches uint8 [N, 16, 64, 64], of which count [N] are there, level [N], fault [N] (-1 clean), snippet."""
    job = partial(_of_snippet, tuple(folders), seed, plain)
    with ProcessPoolExecutor(workers) as pool:
        parts = [part for part in pool.map(job, range(snippets), chunksize=4) if part]
    columns = ("patches", "count", "level", "fault", "snippet")
    return {name: np.concatenate([[row[k] for row in part] for part in parts]) for k, name in enumerate(columns)}


@lru_cache(maxsize=1)
def _material(folders: tuple[Path, ...]) -> Material:
    cv2.setNumThreads(1)
    os.nice(10)
    return Material(list(folders))


def _of_snippet(
    folders: tuple[Path, ...], seed: int, plain: bool, number: int
) -> list[tuple[np.ndarray, int, float, int, int]]:
    """One snippet as it was stored, and damaged in every way on top of that: real recordings went through a codec before."""
    rng = np.random.default_rng([seed, number])
    clip, base = _as_recorded(partial(_material(folders).draw, rng, plain=plain), rng)
    rows = [_row(frame, base, FAULTS.index("compressed") if base else _CLEAN, number) for frame in clip[_LOOKED_AT]]
    for kind in (*KINDS.values(), *KINDS.values()):
        level = float(rng.uniform(0.03, degrade.level_of(kind, kind.worst)))
        fault = kind.fault if level > base else "compressed"
        # A second codec finds little left to take; other kinds take their share of what the first has left.
        total = max(level, base) if kind.fault == "compressed" else 1 - (1 - level) * (1 - base)
        for frame in _damaged(clip, kind, level, rng):
            rows.append(_row(frame, total, FAULTS.index(fault), number))
    return [row for row in rows if row[1]]


def _as_recorded(draw: Callable[..., Clip], rng: Rng) -> tuple[Clip, float]:
    """A clip as a file would hold it, and the level of that: untouched, well coded, as the web has it, or that made smaller."""
    how = rng.random()
    if how < 0.15:
        return draw(), 0.0
    if how < 0.35:
        return _stored(draw(), rng.uniform(14, 24), rng), 0.0
    kind = KINDS[str(rng.choice(["x264", "x264", "x264", "vp9", "mpeg4"]))]
    level = float(rng.uniform(0.05, 0.45))
    if how < 0.65:
        return _damaged(draw(), kind, level, rng, whole=True), level
    clean = draw(times=2)
    coded = _halved(_damaged(clean, kind, level, rng, whole=True))
    lost = float(np.mean([degrade.gmsd(a, b) for a, b in zip(_halved(clean)[_LOOKED_AT], coded[_LOOKED_AT], strict=True)]))
    return coded, lost / degrade.WORST if lost > _UNSEEN * degrade.WORST else 0.0


def _halved(clip: Clip) -> Clip:
    return np.stack([cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for luma in clip])


def _row(frame: np.ndarray, level: float, fault: int, snippet: int) -> tuple[np.ndarray, int, float, int, int]:
    found = patches(frame)
    padded = np.zeros((_PER_FRAME, PATCH, PATCH), np.uint8)
    padded[: len(found)] = found
    return padded, len(found), level, fault, snippet


def _stored(clip: Clip, crf: float, rng: Rng) -> Clip:
    return degrade.coded(clip, "libx264", {"crf": f"{crf:.1f}", "preset": str(rng.choice(_PRESETS))})


def _vp9(clip: Clip, crf: float, rng: Rng) -> Clip:
    """From the slow end of what is used live to the fast one."""
    options = {"crf": f"{crf:.0f}", "b": "0", "deadline": "realtime", "cpu-used": str(rng.integers(5, 9))}
    return degrade.coded(clip, "libvpx-vp9", options)


def _damaged(clip: Clip, kind: Kind, level: float, rng: Rng, whole: bool = False) -> Clip:
    """Frames of the clip at a level, in a variant that the benchmark does not use; a third is stored well afterwards."""
    amount = degrade.amount_of(kind, level)
    if kind.fault == "compressed":
        coded = _CODECS.get(kind.name, kind.apply)(clip, amount, rng)
        return coded if whole else coded[_LOOKED_AT]
    at = _LOOKED_AT[rng.integers(len(_LOOKED_AT))]
    if rng.random() < 0.65:
        return _VARIANTS[kind.name](clip[at : at + 1], amount, rng)
    return _stored(_VARIANTS[kind.name](clip[: at + 1], amount, rng), rng.uniform(10, 20), rng)[at:]


def _blurred(clip: Clip, sigma: float, rng: Rng) -> Clip:
    """Gaussian, out of focus, or smeared along a line, of equal variance."""
    how = rng.integers(4)
    if how < 2:
        return KINDS["blur"].apply(clip, sigma, rng)
    radius = int(np.ceil(2 * sigma if how == 2 else sigma * 12**0.5 / 2))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    angle = rng.uniform(0, np.pi)
    across = np.abs(x * np.sin(angle) - y * np.cos(angle))
    kernel = (
        np.clip(2 * sigma + 0.5 - np.hypot(x, y), 0, 1) if how == 2 else np.clip(1 - across, 0, 1) * (np.hypot(x, y) <= radius)
    )
    return np.stack([cv2.filter2D(luma, -1, kernel / kernel.sum()) for luma in clip])


def _noisy(clip: Clip, sigma: float, rng: Rng) -> Clip:
    """Equal everywhere, or as of light: more where it is bright."""
    if rng.random() < 0.7:
        return KINDS["noise"].apply(clip, sigma, rng)
    strength = np.sqrt(clip / np.maximum(clip.mean(), 1.0)) * sigma
    return np.clip(np.rint(clip + strength * rng.standard_normal(clip.shape, np.float32)), 0, 255).astype(np.uint8)


def _banded(clip: Clip, step: float, rng: Rng) -> Clip:
    offset = rng.uniform(0, step)
    return np.clip((np.floor((clip + offset) / step) + 0.5) * step - offset, 0, 255).astype(np.uint8)


def _upscaled(clip: Clip, factor: float, rng: Rng) -> Clip:
    return degrade.upscaled(clip, factor, int(rng.choice(_UPSCALERS)))


_CODECS = {"x264": _stored, "vp9": _vp9}
_VARIANTS = {
    "blur": _blurred,
    "noise": _noisy,
    "bands": _banded,
    "blocks": KINDS["blocks"].apply,
    "upscale": _upscaled,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.shipped_weights.train_quality", description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    building = jobs.add_parser("build")
    building.add_argument("folder", type=Path)
    building.add_argument("--out", default=WEIGHTS)
    building.add_argument("--workers", type=int, default=2)
    collecting = jobs.add_parser("collect")
    collecting.add_argument("folders", nargs="+", type=Path)
    collecting.add_argument("--out", required=True)
    collecting.add_argument("--snippets", type=int, default=700)
    collecting.add_argument("--seed", type=int, default=0)
    collecting.add_argument("--workers", type=int, default=2)
    collecting.add_argument("--plain", action="store_true", help="worlds without textures only")
    training = jobs.add_parser("train")
    training.add_argument("data", nargs="+")
    training.add_argument("--held", required=True)
    training.add_argument("--out", default=WEIGHTS)
    training.add_argument("--epochs", type=int, default=EPOCHS)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--threads", type=int, default=1)
    jobs.add_parser("levels").add_argument("footage", nargs="+", type=Path)
    options = vars(parser.parse_args(argv))
    run: dict[str, Callable[..., None]] = {"build": _build, "collect": _collect, "train": _train, "levels": _levels}
    run[options.pop("job")](**options)


def _build(folder: Path, out: str, workers: int) -> None:
    gather(folder)
    files: dict[str, list[str]] = {"train": [], "held": []}
    for share, sets in SETS.items():
        for seed, snippets, plain in sets:
            file = folder / f"{share}{seed}.npz"
            if not file.exists():
                _collect(str(file), folders=[folder / share], snippets=snippets, seed=seed, plain=plain, workers=workers)
            files[share].append(str(file))
    _train(files["train"], files["held"][0], out, EPOCHS, seed=0, threads=1)


def _collect(out: str, **options: Any) -> None:
    data = collect(**options)
    np.savez(out, allow_pickle=False, **data)
    print(f"{out}: {len(data['level'])} frames of {len(np.unique(data['snippet']))} snippets")


def _train(data: list[str], held: str, out: str, epochs: int, seed: int, threads: int) -> None:
    import torch

    from bench.shipped_weights import quality_network

    torch.set_num_threads(threads)
    net = quality_network.train(
        quality_network.measured(_loaded(data)), quality_network.measured(_loaded([held])), epochs, seed
    )
    np.savez(out, allow_pickle=False, **quality_network.exported(net))
    print(f"{out}: {os.path.getsize(out) / 1024:.0f} KiB")


def _levels(footage: list[Path]) -> None:
    """The amounts of each kind that cost each level on average over clips of six frames."""
    clips = [stretch.luma[:6] for file in footage for stretch in stretches(file)]
    for kind in KINDS.values():
        spaced = np.linspace if kind.fault in ("compressed", "blocky") else np.geomspace
        amounts = spaced(kind.mildest, kind.worst, 16)
        costs = np.maximum.accumulate([_cost(clips, kind, amount) for amount in amounts])
        wanted = [knot * degrade.WORST for knot in degrade.KNOTS[1:] if knot * degrade.WORST <= costs[-1]]
        print(f"{kind.name:8}", " ".join(f"{amount:.2f}" for amount in np.interp(wanted, costs, amounts)))


def _cost(clips: list[Clip], kind: Kind, amount: float) -> float:
    """Mean GMSD over two frames of each clip."""
    worse = [(clip, kind.apply(clip, float(amount), np.random.default_rng(0))) for clip in clips]
    return float(np.mean([degrade.gmsd(clean[at], bad[at]) for clean, bad in worse for at in (2, 5)]))


def _loaded(files: list[str]) -> dict[str, np.ndarray]:
    parts = [np.load(file) for file in files]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    main()
