"""Train the demo world from nothing, and measure control accuracy on maps that it never saw: footage, codec, stage 1.

gamecraft bench world FOLDER [--seeds 0 1]: what FOLDER has already is not made again. Control accuracy is counted per clip of
recorded held-out windows with their own controls. Real frames, measured in the same way, are the upper limit; another clip's
controls are chance.
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
from model.backbone.vae import to_signed, to_uint8
from model.config import FRAMES_PER_LATENT
from model.control.spec import ControlSpec, ControlState
from model.control.trajectory import integrate
from model.data.loader import DataSettings, TrainingSample, collate
from model.data.windows import StoredClip, Window, stored_clips
from model.evaluation import control_accuracy
from model.evaluation.control_accuracy import DIRECTIONS, Direction, Proportion
from model.parallel import dist
from model.parallel.layout import place_rank
from model.recipes import TrainRecipe, demo
from model.sampling import sample, sampler_sigmas
from model.train import train
from model.training import flow_matching
from model.training.metrics import contact_sheet
from model.training.parts import ModelParts
from model.training.sample_videos import evaluation_data, read_window

# Guidance leads away from no camera (1: no guidance). It was tuned on training maps, frames and steps were simply chosen.
FRAMES, STEPS, GUIDANCE = 5, 6, 3.0
# 128 clips per direction give an interval of +-7 points; more would only cost time.
_MAX_CLIPS, _BATCH, _STARTS = 128, 32, 64
_STILL = "first frame"  # repeated: the quality of a video that never moves
_KEYS: dict[Direction, str] = {"right": "RIGHT", "left": "LEFT", "forward": "W", "back": "S"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, print the tables, and write sheets and numbers into the folders of the runs."""
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
class HeldOutClips:
    """Held-out windows: the direction of each, and its sample."""

    directions: list[Direction]
    samples: list[TrainingSample]


def held_out_clips(outputs: Sequence[str], data: DataSettings) -> HeldOutClips:
    """Return windows with one direction, at most 128 for each, without overlap and without starts against a wall.

    Walks are searched first: they are rarer than turns, and the same play contains both.
    """
    by_direction: dict[Direction, list[TrainingSample]] = {direction: [] for direction in DIRECTIONS}
    clips = stored_clips(outputs)
    for number in np.random.default_rng(7).permutation(len(clips)):
        whole = _read_clip(clips[number], data)
        free = np.ones(len(whole["pose"]), bool)
        for wanted in (("forward", "back"), ("right", "left")):
            for start in range(len(free) - FRAMES + 1):
                if free[start : start + FRAMES].all() and (window := _window(whole, start, wanted)):
                    direction, window_sample = window
                    free[start : start + FRAMES] = False
                    by_direction[direction].append(window_sample)
    kept = {direction: samples[:_MAX_CLIPS] for direction, samples in by_direction.items()}
    directions = [direction for direction in DIRECTIONS for _ in kept[direction]]
    return HeldOutClips(directions, [one for direction in DIRECTIONS for one in kept[direction]])


def _read_clip(clip: StoredClip, data: DataSettings) -> TrainingSample:
    """Read a whole clip, at the rate and size of training."""
    frames = 1 + FRAMES_PER_LATENT * int((clip.seconds * data.fps - 1) // FRAMES_PER_LATENT)
    return read_window(Window((clip,), 0.0, 0.0), evaluation_data(data, frames))


def _window(whole: TrainingSample, start: int, wanted: Sequence[str]) -> tuple[Direction, TrainingSample] | None:
    """Return direction and sample of the window that starts at a frame, None for another direction or a blank picture."""
    part = slice(start, start + FRAMES)
    pose = torch.linalg.inv(whole["pose"][start].double()) @ whole["pose"][part].double()
    direction = control_accuracy.camera_motion(pose.numpy()).direction
    if direction is None or direction not in wanted:
        return None
    if control_accuracy.is_blank(whole["video"][:, start].permute(1, 2, 0).numpy()):
        return None
    video, intrinsics = whole["video"][:, part], whole["intrinsics"][part]
    changes = {"video": video, "pose": pose.float(), "intrinsics": intrinsics, "key": f"{whole['key']}+{start}"}
    return direction, TrainingSample(**{**whole, **changes})  # type: ignore[typeddict-item]


def evaluate(recipe: TrainRecipe, trained: Sequence[str], held_out: Sequence[str], run: Path) -> str:
    """Return control accuracy and picture quality of a run's averaged weights as a table.

    Numbers and a sheet are written into the run's folder.
    """
    clips = held_out_clips(held_out, recipe.data)
    *_, device = dist.start()
    try:
        parts = build.load_trained(recipe, trained, str(run), place_rank(recipe.layout, device), print)
        videos = generate(parts, clips)
        key_videos = generate_with_keys(parts, clips, recipe.control)
    finally:
        dist.stop()
    table = {name: accuracy(clips.directions, made) for name, made in videos.items() if name != _STILL}
    pairs = [(direction, video) for direction, made in key_videos.items() for video in made]
    table["keys held down"] = accuracy([direction for direction, _ in pairs], torch.stack([video for _, video in pairs]))
    quality = {name: fidelity(made, videos["real frames"]) for name, made in videos.items()}
    (run / "evaluation.json").write_text(json.dumps({"control_accuracy": table, "quality": quality}, indent=1))
    cv2.imwrite(str(run / "sheet.png"), comparison_sheet(clips.directions, videos)[..., ::-1])
    return "\n".join([describe(), *lines(table, quality)])


def generate(parts: ModelParts, clips: HeldOutClips) -> dict[str, Tensor]:
    """Return videos uint8 [N, 3, F, H, W] by how they were made."""
    order = np.random.default_rng(8).permutation(len(clips.samples))
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)  # every clip gets the controls of another one
    videos: dict[str, list[Tensor]] = defaultdict(list)
    for first in range(0, len(clips.samples), _BATCH):
        batch = collate(clips.samples[first : first + _BATCH])
        other = collate([clips.samples[i] for i in others[first : first + _BATCH]])
        real = to_signed(batch["video"].to(parts.device))
        videos["real frames"].append(batch["video"])
        videos["codec"].append(to_uint8(parts.codec.decode(parts.codec.encode(real))).cpu())
        videos[_STILL].append(batch["video"][:, :, :1].expand_as(batch["video"]))
        for name, poses in (("own controls", batch["pose"]), ("another clip's controls", other["pose"])):
            videos[name].append(_generate_batch(parts, {**batch, "pose": poses}, first))
        videos["own, no guidance"].append(_generate_batch(parts, batch, first, guidance=1.0))
        print(f"{first + len(real)} of {len(clips.samples)} clips", flush=True)
    return {name: torch.cat(batches) for name, batches in videos.items()}


def generate_with_keys(parts: ModelParts, clips: HeldOutClips, spec: ControlSpec) -> dict[Direction, Tensor]:
    """Return videos from the first frames of clips with one key held down, by the integrator that play uses."""
    starts = [clips.samples[i] for i in np.random.default_rng(10).permutation(len(clips.samples))[:_STARTS]]
    videos: dict[Direction, list[Tensor]] = defaultdict(list)
    for direction, key in _KEYS.items():
        pose = torch.from_numpy(integrate([ControlState(frozenset({key}))] * (FRAMES - 1), spec)).float()
        for first in range(0, len(starts), _BATCH):
            batch = collate(starts[first : first + _BATCH])
            batch["pose"] = pose.expand(len(batch["video"]), -1, -1, -1)
            videos[direction].append(_generate_batch(parts, batch, first))
    return {direction: torch.cat(batches) for direction, batches in videos.items()}


def _generate_batch(parts: ModelParts, batch: dict[str, Any], seed: int, guidance: float = GUIDANCE) -> Tensor:
    """Generate videos from a batch's first frames and cameras."""
    encoders = parts.codec, parts.text_encoder, parts.device, parts.vlm_encoder
    conditioning = flow_matching.encode_batch(batch, *encoders).conditioning
    sigmas, generator = sampler_sigmas(parts.world.noise, STEPS), torch.Generator().manual_seed(seed)
    latents = sample(parts.world, conditioning, sigmas, generator, conditioning._replace(maps=None), guidance)
    return to_uint8(parts.codec.decode(latents)).cpu()


def accuracy(directions: Sequence[Direction], videos: Tensor) -> dict[str, Proportion]:
    """Return the share of videos that follow their direction, by direction, and for both turns and both walks together."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for direction, video in zip(directions, videos, strict=True):
        hit = control_accuracy.follows(direction, control_accuracy.video_motion(video.permute(1, 2, 3, 0).numpy()))
        hits[direction].append(hit)
        hits["turn" if direction in ("right", "left") else "forward/back"].append(hit)
    return {name: control_accuracy.proportion(results) for name, results in hits.items()}


def fidelity(videos: Tensor, real: Tensor) -> dict[str, float]:
    """Return the PSNR of all frames after the first, and the sharpness of the last frame (deviation of its Laplacian)."""
    error = (videos[:, :, 1:].float() - real[:, :, 1:].float()).square().mean((1, 2, 3, 4))
    per_clip = 10 * torch.log10(255**2 / error.clamp(min=1e-3))
    grey = videos[:, :, -1].float().mean(1).numpy()
    return {
        "psnr_db": float(per_clip.mean()),
        "psnr_of_mean_db": float(10 * torch.log10(255**2 / error.mean().clamp(min=1e-3))),
        "sharpness": float(np.mean([cv2.Laplacian(picture, cv2.CV_32F).std() for picture in grey])),
    }


def curves(log: Path, out: Path) -> None:
    """Draw the loss by noise level, means over 200 steps, and the control accuracy of sample videos during training."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    logged = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    bins: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in logged:
        for name, value in line.get("bins", {}).items():
            bins[name][line["step"] // 200 * 200].append(value)
    for name, by_step in sorted(bins.items()):
        left.plot(list(by_step), [np.mean(values) for values in by_step.values()], label=f"noise {name}")
    # In logs of earlier releases the shares are called obedience.
    sampled = [(line["step"], line.get("control_accuracy") or line.get("obedience")) for line in logged]
    for direction in DIRECTIONS:
        points = [(step, shares[direction]) for step, shares in sampled if shares and direction in shares]
        right.plot(*zip(*points, strict=True), marker="o", label=direction) if points else None
    left.set(xlabel="step", ylabel="loss (velocity, mean square)")
    right.set(xlabel="step", ylabel="control accuracy (few clips)", ylim=(0, 1.05))
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    figure.savefig(out, dpi=80)
    pyplot.close(figure)


def lines(table: dict[str, dict[str, Proportion]], quality: dict[str, dict[str, float]]) -> Iterator[str]:
    """Yield the table as text."""
    for name, shares in table.items():
        columns = ("turn", "forward/back", *DIRECTIONS)
        yield f"{name:24}" + "  ".join(f"{column} {shares[column]}" for column in columns if column in shares)
    for name, numbers in quality.items():
        yield f"{name:24}PSNR {numbers['psnr_db']:.1f} dB, sharpness {numbers['sharpness']:.1f}"


def comparison_sheet(
    directions: Sequence[Direction], videos: dict[str, Tensor], per_direction: int = 2, enlarged: int = 2
) -> np.ndarray:
    """Return pairs of rows, real above generated, of clips spread over those of each direction; uint8 [H, W, 3]."""
    rows = []
    for direction in DIRECTIONS:
        numbers = [i for i, d in enumerate(directions) if d == direction]
        for number in numbers[:: max(1, len(numbers) // per_direction)][:per_direction]:
            pair = contact_sheet(torch.stack([videos["real frames"][number], videos["own controls"][number]]))
            big = pair.repeat(enlarged, 0).repeat(enlarged, 1)
            label = np.full((len(big), 70, 3), 255, np.uint8)
            cv2.putText(label, direction, (2, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
            rows += [np.hstack([label, big]), np.full((6, big.shape[1] + 70, 3), 255, np.uint8)]
    return np.vstack(rows)


if __name__ == "__main__":
    main()
