"""The demo world from nothing: footage, codec, stage 1, and whether what it generates obeys on maps that it never saw.

gamecraft bench world FOLDER [--seeds 0 1]: what FOLDER holds already is not made again. Obedience is counted per clip of
recorded held-out windows with their own controls; real frames measured alike are the ceiling, another clip's controls chance.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from bench import demo_footage
from bench.machine import describe
from model import build
from model.backbone.vae import signed
from model.build import Parts
from model.config import FRAMES_A_LATENT
from model.control.spec import ControlSpec, ControlState
from model.control.trajectory import integrate
from model.data.loader import DataSettings, Sample, collate
from model.data.windows import Clip, Window, stored_clips
from model.evaluation import control_accuracy
from model.evaluation.control_accuracy import KINDS, Kind
from model.parallel import dist
from model.parallel.layout import seated
from model.recipes import TrainRecipe, demo
from model.sampling import levels, sample
from model.train import train
from model.training import flow_matching
from model.training.metrics import pictures, sheet
from model.training.sample_videos import as_played, plainly

# Guidance leads away from no camera at all (1: none); it was compared on training maps, the others chosen.
FRAMES, STEPS, GUIDANCE = 5, 6, 3.0
# At least 128 of a kind make an interval of +-7 points; more only cost time.
_MOST, _BATCH, _STARTS = 128, 32, 64
_STILL = "first frame"  # repeated: what a video that never moves is worth
_KEYS: dict[Kind, str] = {"right": "RIGHT", "left": "LEFT", "forward": "W", "back": "S"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, print the tables, leave sheets and numbers beside the runs."""
    parser = argparse.ArgumentParser(prog="gamecraft bench world", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args(arguments)
    demo_footage.main([str(options.folder)])
    trained, held_out = (str(options.folder / f"{kind}-shards") for kind in ("train", "held-out"))
    for seed in options.seeds:
        recipe = demo()
        recipe = replace(recipe, train=replace(recipe.train, seed=seed), data=replace(recipe.data, seed=seed))
        run = options.folder / f"run-{seed}"
        began = time.process_time()
        train(recipe, [trained], str(run))
        print(f"seed {seed}: {time.process_time() - began:.0f} CPU-seconds of training now", flush=True)
        print(evaluate(recipe, [trained], [held_out], run), flush=True)
        curves(run / "log.jsonl", run / "curves.png")


@dataclass(frozen=True)
class Clips:
    """Held-out windows: what was asked of each, the loader's sample of it."""

    kinds: list[Kind]
    samples: list[Sample]


def held_out_clips(outputs: Sequence[str], data: DataSettings) -> Clips:
    """Windows in which one thing is asked, none overlapping, at most 128 of a kind; starts against a wall are left out.

    Walks are looked for first: they are rarer than turns, and the same play holds both.
    """
    found: dict[Kind, list[Sample]] = {kind: [] for kind in KINDS}
    clips = stored_clips(outputs)
    for number in np.random.default_rng(7).permutation(len(clips)):
        whole = _whole(clips[number], data)
        free = np.ones(len(whole["pose"]), bool)
        for wanted in (("forward", "back"), ("right", "left")):
            for start in range(len(free) - FRAMES + 1):
                if free[start : start + FRAMES].all() and (one := _window(whole, start, wanted)):
                    kind, sample_ = one
                    free[start : start + FRAMES] = False
                    found[kind].append(sample_)
    kept = {kind: samples[:_MOST] for kind, samples in found.items()}
    return Clips([kind for kind in KINDS for _ in kept[kind]], [one for kind in KINDS for one in kept[kind]])


def _whole(clip: Clip, data: DataSettings) -> Sample:
    """All of a clip, at the rate and size of training."""
    frames = 1 + FRAMES_A_LATENT * int((clip.seconds * data.fps - 1) // FRAMES_A_LATENT)
    return plainly(Window((clip,), 0.0, 0.0), as_played(data, frames))


def _window(whole: Sample, start: int, wanted: Sequence[str]) -> tuple[Kind, Sample] | None:
    """What was asked from a frame on and the sample of it, if it is something wanted and there is something to see."""
    part = slice(start, start + FRAMES)
    pose = torch.linalg.inv(whole["pose"][start].double()) @ whole["pose"][part].double()
    kind = control_accuracy.told(pose.numpy()).kind
    if kind is None or kind not in wanted or control_accuracy.blank(whole["video"][:, start].permute(1, 2, 0).numpy()):
        return None
    video, inner = whole["video"][:, part], whole["intrinsics"][part]
    return kind, Sample({**whole, "video": video, "pose": pose.float(), "intrinsics": inner, "key": f"{whole['key']}+{start}"})


def evaluate(recipe: TrainRecipe, trained: Sequence[str], held_out: Sequence[str], run: Path) -> str:
    """Obedience and picture quality of a run's averaged weights, as a table; numbers and a sheet are left in its folder."""
    clips = held_out_clips(held_out, recipe.data)
    *_, device = dist.start()
    try:
        made = build.trained(recipe, trained, str(run), seated(recipe.layout, device), print)
        videos = generated(made, clips)
        keys = commanded(made, clips, recipe.control)
    finally:
        dist.stop()
    table = {name: obeyed(clips.kinds, found) for name, found in videos.items() if name != _STILL}
    held = [(kind, video) for kind, found in keys.items() for video in found]
    table["keys held down"] = obeyed([kind for kind, _ in held], torch.stack([video for _, video in held]))
    quality = {name: fidelity(found, videos["real frames"]) for name, found in videos.items()}
    (run / "evaluation.json").write_text(json.dumps({"obedience": table, "quality": quality}, indent=1))
    cv2.imwrite(str(run / "sheet.png"), contact_sheet(clips.kinds, videos)[..., ::-1])
    return "\n".join([describe(), *lines(table, quality)])


def generated(made: Parts, clips: Clips) -> dict[str, Tensor]:
    """Videos uint8 [N, 3, F, H, W] by what made them."""
    order = np.random.default_rng(8).permutation(len(clips.samples))
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)  # no clip is its own other
    found: dict[str, list[Tensor]] = defaultdict(list)
    for first in range(0, len(clips.samples), _BATCH):
        batch = collate(clips.samples[first : first + _BATCH])
        other = collate([clips.samples[i] for i in others[first : first + _BATCH]])
        real = signed(batch["video"].to(made.device))
        found["real frames"].append(batch["video"])
        found["codec"].append(pictures(made.codec.decode(made.codec.encode(real))).cpu())
        found[_STILL].append(batch["video"][:, :, :1].expand_as(batch["video"]))
        for name, poses in (("own controls", batch["pose"]), ("another clip's controls", other["pose"])):
            found[name].append(_videos(made, {**batch, "pose": poses}, first))
        found["own, no guidance"].append(_videos(made, batch, first, guidance=1.0))
        print(f"{first + len(real)} of {len(clips.samples)} clips", flush=True)
    return {name: torch.cat(parts_) for name, parts_ in found.items()}


def commanded(made: Parts, clips: Clips, spec: ControlSpec) -> dict[Kind, Tensor]:
    """Videos of one key held down from the first frame of clips, by the integrator that play uses."""
    starts = [clips.samples[i] for i in np.random.default_rng(10).permutation(len(clips.samples))[:_STARTS]]
    found: dict[Kind, list[Tensor]] = defaultdict(list)
    for kind, key in _KEYS.items():
        pose = torch.from_numpy(integrate([ControlState(frozenset({key}))] * (FRAMES - 1), spec)).float()
        for first in range(0, len(starts), _BATCH):
            batch = collate(starts[first : first + _BATCH])
            batch["pose"] = pose.expand(len(batch["video"]), -1, -1, -1)
            found[kind].append(_videos(made, batch, first))
    return {kind: torch.cat(parts_) for kind, parts_ in found.items()}


def _videos(made: Parts, batch: dict[str, Any], seed: int, guidance: float = GUIDANCE) -> Tensor:
    """What the world makes of a batch's first frames and cameras."""
    given = flow_matching.encoded(batch, made.codec, made.words, made.device, made.thoughts).given
    sigmas, generator = levels(made.world.noise, STEPS), torch.Generator().manual_seed(seed)
    latents = sample(made.world, given, sigmas, generator, given._replace(maps=None), guidance)
    return pictures(made.codec.decode(latents)).cpu()


def obeyed(kinds: Sequence[Kind], videos: Tensor) -> dict[str, control_accuracy.Share]:
    """Shares by kind, and of turns and walks, each the mean of its two kinds' clips."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for kind, video in zip(kinds, videos, strict=True):
        hit = control_accuracy.obeys(kind, control_accuracy.shown(video.permute(1, 2, 3, 0).numpy()))
        hits[kind].append(hit)
        hits["turn" if kind in ("right", "left") else "forward/back"].append(hit)
    return {kind: control_accuracy.share(found) for kind, found in hits.items()}


def fidelity(videos: Tensor, real: Tensor) -> dict[str, float]:
    """Against the real frames behind the first: PSNR; and how sharp the last frame is (deviation of its Laplacian)."""
    error = (videos[:, :, 1:].float() - real[:, :, 1:].float()).square().mean((1, 2, 3, 4))
    per_clip = 10 * torch.log10(255**2 / error.clamp(min=1e-3))
    grey = videos[:, :, -1].float().mean(1).numpy()
    return {
        "psnr_db": float(per_clip.mean()),
        "psnr_of_mean_db": float(10 * torch.log10(255**2 / error.mean().clamp(min=1e-3))),
        "sharpness": float(np.mean([cv2.Laplacian(picture, cv2.CV_32F).std() for picture in grey])),
    }


def curves(log: Path, out: Path) -> None:
    """Loss by noise level, means over 200 steps, and obedience during training, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    notes = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    bins: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for note in notes:
        for name, value in note.get("bins", {}).items():
            bins[name][note["step"] // 200 * 200].append(value)
    for name, found in sorted(bins.items()):
        left.plot(list(found), [np.mean(values) for values in found.values()], label=f"noise {name}")
    watched = [(note["step"], note["obedience"]) for note in notes if "obedience" in note]
    for kind in KINDS:
        points = [(step, shares[kind]) for step, shares in watched if kind in shares]
        right.plot(*zip(*points, strict=True), marker="o", label=kind) if points else None
    left.set(xlabel="step", ylabel="loss (velocity, mean square)")
    right.set(xlabel="step", ylabel="share that obeys (few clips)", ylim=(0, 1.05))
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    figure.savefig(out, dpi=80)
    pyplot.close(figure)


def lines(table: dict[str, dict[str, control_accuracy.Share]], quality: dict[str, dict[str, float]]) -> Iterator[str]:
    """The table in words."""
    for name, shares in table.items():
        yield f"{name:24}" + "  ".join(f"{kind} {shares[kind]}" for kind in ("turn", "forward/back", *KINDS) if kind in shares)
    for name, numbers in quality.items():
        yield f"{name:24}PSNR {numbers['psnr_db']:.1f} dB, sharpness {numbers['sharpness']:.1f}"


def contact_sheet(kinds: Sequence[Kind], videos: dict[str, Tensor], clips_a_kind: int = 2, enlarged: int = 2) -> np.ndarray:
    """Pairs of rows, real above generated, clips spread over those of each kind; uint8 [H, W, 3]."""
    rows = []
    for kind in KINDS:
        numbers = [i for i, k in enumerate(kinds) if k == kind]
        for number in numbers[:: max(1, len(numbers) // clips_a_kind)][:clips_a_kind]:
            pair = sheet(torch.stack([videos["real frames"][number], videos["own controls"][number]]))
            big = pair.repeat(enlarged, 0).repeat(enlarged, 1)
            label = np.full((len(big), 70, 3), 255, np.uint8)
            cv2.putText(label, kind, (2, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
            rows += [np.hstack([label, big]), np.full((6, big.shape[1] + 70, 3), 255, np.uint8)]
    return np.vstack(rows)


if __name__ == "__main__":
    main()
