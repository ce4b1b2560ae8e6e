"""Train the embedded quality network (`curation.quality.embedded_backend`) on clean pictures damaged by known amounts.

    python -m bench.shipped_weights.train_quality build FOLDER                        gather, collect and train; about an hour
    python -m bench.shipped_weights.train_quality collect FOLDER... --out DATA.npz    write damaged patches and their levels
    python -m bench.shipped_weights.train_quality train DATA.npz --held-out HELD.npz  write the weights, print scores
    python -m bench.shipped_weights.train_quality levels FOOTAGE...                   print the amounts for `bench.degrade`

The weights go to `curation/quality/iqa_net.npz`; `docs/models/quality.md` is their model card. Seeds are fixed, so equal data
give an equal network on equal machines.
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
from bench.degrade import KINDS, DamageKind, LumaClip
from bench.quality import footage_clips
from bench.shipped_weights.gather import gather
from bench.shipped_weights.material import Material
from curation.quality.embedded_backend import WEIGHTS
from curation.quality.iqa import FAULTS, PATCH, select_patches

SETS = {"train": ((31, 250, False), (32, 250, False), (33, 250, False), (34, 180, True)), "held": ((78, 60, False),)}
"""The sets of the shipped weights: seed, number of snippets, and whether they show worlds without textures."""
EPOCHS = 18
_PER_FRAME = 16
_PRESETS = ("ultrafast", "superfast", "fast", "medium")
_UPSCALERS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
_CLEAN = -1
_SAMPLED_FRAMES = [5, 13]  # frames of a snippet that are used; by then a codec has left its first picture behind
_MIN_MEASURED_LEVEL = 0.06  # a measured level below this counts as clean
Rng = np.random.Generator


def collect(folders: list[Path], snippets: int, seed: int, workers: int, plain: bool = False) -> dict[str, np.ndarray]:
    """Collect N damaged frames.

    Return patches uint8 [N, 16, 64, 64], how many of them are used [N], level [N], fault [N] (-1 for clean), and snippet [N].
    """
    job = partial(_snippet_rows, tuple(folders), seed, plain)
    with ProcessPoolExecutor(workers) as pool:
        parts = [part for part in pool.map(job, range(snippets), chunksize=4) if part]
    columns = ("patches", "count", "level", "fault", "snippet")
    return {name: np.concatenate([[row[k] for row in part] for part in parts]) for k, name in enumerate(columns)}


@lru_cache(maxsize=1)
def _material(folders: tuple[Path, ...]) -> Material:
    cv2.setNumThreads(1)
    os.nice(10)
    return Material(list(folders))


def _snippet_rows(
    folders: tuple[Path, ...], seed: int, plain: bool, number: int
) -> list[tuple[np.ndarray, int, float, int, int]]:
    """Return the frames of one snippet as stored, and with each kind of damage on top.

    Snippets are stored first because real recordings have been through a codec.
    """
    rng = np.random.default_rng([seed, number])
    clip, base = _as_stored(partial(_material(folders).draw, rng, plain=plain), rng)
    rows = [_row(frame, base, FAULTS.index("compressed") if base else _CLEAN, number) for frame in clip[_SAMPLED_FRAMES]]
    for kind in (*KINDS.values(), *KINDS.values()):
        level = float(rng.uniform(0.03, degrade.level_of(kind, kind.worst)))
        fault = kind.fault if level > base else "compressed"
        # A second codec has little left to remove. Other kinds remove their share of what the first has left.
        total = max(level, base) if kind.fault == "compressed" else 1 - (1 - level) * (1 - base)
        for frame in _damaged_frames(clip, kind, level, rng):
            rows.append(_row(frame, total, FAULTS.index(fault), number))
    return [row for row in rows if row[1]]


def _as_stored(draw: Callable[..., LumaClip], rng: Rng) -> tuple[LumaClip, float]:
    """Return a clip as a file would contain it, and its level of damage.

    A clip is untouched, well encoded, encoded as on the web, or encoded as on the web and then shrunk.
    """
    choice = rng.random()
    if choice < 0.15:
        return draw(), 0.0
    if choice < 0.35:
        return _encode_x264(draw(), rng.uniform(14, 24), rng), 0.0
    kind = KINDS[str(rng.choice(["x264", "x264", "x264", "vp9", "mpeg4"]))]
    level = float(rng.uniform(0.05, 0.45))
    if choice < 0.65:
        return _damaged_frames(draw(), kind, level, rng, whole=True), level
    clean = draw(times=2)
    coded = _halve(_damaged_frames(clean, kind, level, rng, whole=True))
    pairs = zip(_halve(clean)[_SAMPLED_FRAMES], coded[_SAMPLED_FRAMES], strict=True)
    damage = float(np.mean([degrade.gmsd(a, b) for a, b in pairs]))
    return coded, damage / degrade.WORST_GMSD if damage > _MIN_MEASURED_LEVEL * degrade.WORST_GMSD else 0.0


def _halve(clip: LumaClip) -> LumaClip:
    return np.stack([cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for luma in clip])


def _row(frame: np.ndarray, level: float, fault: int, snippet: int) -> tuple[np.ndarray, int, float, int, int]:
    squares = select_patches(frame)
    padded = np.zeros((_PER_FRAME, PATCH, PATCH), np.uint8)
    padded[: len(squares)] = squares
    return padded, len(squares), level, fault, snippet


def _encode_x264(clip: LumaClip, crf: float, rng: Rng) -> LumaClip:
    return degrade.encode_decode(clip, "libx264", {"crf": f"{crf:.1f}", "preset": str(rng.choice(_PRESETS))})


def _encode_vp9(clip: LumaClip, crf: float, rng: Rng) -> LumaClip:
    """Encode with a random speed between the slow and the fast end of live encoding."""
    options = {"crf": f"{crf:.0f}", "b": "0", "deadline": "realtime", "cpu-used": str(rng.integers(5, 9))}
    return degrade.encode_decode(clip, "libvpx-vp9", options)


def _damaged_frames(clip: LumaClip, kind: DamageKind, level: float, rng: Rng, whole: bool = False) -> LumaClip:
    """Return frames of the clip at a level, in a variant that the benchmark does not use. A third is then encoded well."""
    amount = degrade.amount_of(kind, level)
    if kind.fault == "compressed":
        coded = _CODECS.get(kind.name, kind.apply)(clip, amount, rng)
        return coded if whole else coded[_SAMPLED_FRAMES]
    index = _SAMPLED_FRAMES[rng.integers(len(_SAMPLED_FRAMES))]
    if rng.random() < 0.65:
        return _VARIANTS[kind.name](clip[index : index + 1], amount, rng)
    return _encode_x264(_VARIANTS[kind.name](clip[: index + 1], amount, rng), rng.uniform(10, 20), rng)[index:]


def _blur(clip: LumaClip, sigma: float, rng: Rng) -> LumaClip:
    """Blur with a Gaussian, out of focus, or along a line, all with the same variance."""
    choice = rng.integers(4)
    if choice < 2:
        return KINDS["blur"].apply(clip, sigma, rng)
    radius = int(np.ceil(2 * sigma if choice == 2 else sigma * 12**0.5 / 2))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    angle = rng.uniform(0, np.pi)
    across = np.abs(x * np.sin(angle) - y * np.cos(angle))
    kernel = (
        np.clip(2 * sigma + 0.5 - np.hypot(x, y), 0, 1)
        if choice == 2
        else np.clip(1 - across, 0, 1) * (np.hypot(x, y) <= radius)
    )
    return np.stack([cv2.filter2D(luma, -1, kernel / kernel.sum()) for luma in clip])


def _add_noise(clip: LumaClip, sigma: float, rng: Rng) -> LumaClip:
    """Add noise that is equal everywhere, or stronger in bright parts like the noise of light."""
    if rng.random() < 0.7:
        return KINDS["noise"].apply(clip, sigma, rng)
    strength = np.sqrt(clip / np.maximum(clip.mean(), 1.0)) * sigma
    return np.clip(np.rint(clip + strength * rng.standard_normal(clip.shape, np.float32)), 0, 255).astype(np.uint8)


def _add_bands(clip: LumaClip, step: float, rng: Rng) -> LumaClip:
    offset = rng.uniform(0, step)
    return np.clip((np.floor((clip + offset) / step) + 0.5) * step - offset, 0, 255).astype(np.uint8)


def _upscale(clip: LumaClip, factor: float, rng: Rng) -> LumaClip:
    return degrade.upscale(clip, factor, int(rng.choice(_UPSCALERS)))


_CODECS = {"x264": _encode_x264, "vp9": _encode_vp9}
_VARIANTS = {
    "blur": _blur,
    "noise": _add_noise,
    "bands": _add_bands,
    "blocks": KINDS["blocks"].apply,
    "upscale": _upscale,
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
    collecting.add_argument("--plain", action="store_true", help="only worlds without textures")
    training = jobs.add_parser("train")
    training.add_argument("data", nargs="+")
    training.add_argument("--held-out", required=True)
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


def _train(data: list[str], held_out: str, out: str, epochs: int, seed: int, threads: int) -> None:
    import torch

    from bench.shipped_weights import quality_network

    torch.set_num_threads(threads)
    frames, held_out_frames = (quality_network.extract_features(_load_data(files)) for files in (data, [held_out]))
    net = quality_network.train(frames, held_out_frames, epochs, seed)
    np.savez(out, allow_pickle=False, **quality_network.export_arrays(net))
    print(f"{out}: {os.path.getsize(out) / 1024:.0f} KiB")


def _levels(footage: list[Path]) -> None:
    """Print the amount of each kind that gives each level, on average over clips of six frames."""
    clips = [clip.luma[:6] for file in footage for clip in footage_clips(file)]
    for kind in KINDS.values():
        spaced = np.linspace if kind.fault in ("compressed", "blocky") else np.geomspace
        amounts = spaced(kind.mildest, kind.worst, 16)
        costs = np.maximum.accumulate([_cost(clips, kind, amount) for amount in amounts])
        targets = [knot * degrade.WORST_GMSD for knot in degrade.KNOTS[1:] if knot * degrade.WORST_GMSD <= costs[-1]]
        print(f"{kind.name:8}", " ".join(f"{amount:.2f}" for amount in np.interp(targets, costs, amounts)))


def _cost(clips: list[LumaClip], kind: DamageKind, amount: float) -> float:
    """Return the mean GMSD that an amount gives over two frames of each clip."""
    pairs = [(clip, kind.apply(clip, float(amount), np.random.default_rng(0))) for clip in clips]
    return float(np.mean([degrade.gmsd(clean[k], damaged[k]) for clean, damaged in pairs for k in (2, 5)]))


def _load_data(files: list[str]) -> dict[str, np.ndarray]:
    parts = [np.load(file) for file in files]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    main()
