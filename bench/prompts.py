"""Measure whether prompts change a played world as they should, by a classifier that an engine's labels trained.

gamecraft bench prompts WORLD --data EVENTS --held-out EVENTS [--out FOLDER]. EVENTS are curated outputs of takes in which the
engine acted the prompts. The classifier sees single frames and names the event, or none; it is trained on frames as they are,
through the world's codec, and blurred, since a world's frames are softer. Its accuracy on held-out takes is measured too. Then
the world plays from held-out starts: without a prompt, and with each prompt after half a second.
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.machine import describe
from bench.play import play_data, strip
from model.backbone.vae import Codec, to_signed
from model.causal.rollout import Rollout, StreamStart
from model.control.spec import ControlState
from model.control.trajectory import integrate
from model.data.captions import CaptionMix
from model.data.loader import Windows
from model.data.windows import Window
from model.evaluation.control_accuracy import proportion
from model.play.export import text_of_clip
from model.world_files import LoadedWorld, find_world, load_world, plain_prompt

NONE = "none"
_FRAMES = 49
_BEFORE = 9  # frames that are played before the prompt is given: half a second
_WITHIN = 9  # frames after the prompt in which the change must be seen


class LabelledFrames(NamedTuple):
    """Frames uint8 [N, 3, H, W], and their classes."""

    frames: Tensor
    labels: list[str]


class Classifier(nn.Module):
    """A small convolutional network on single frames."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 96)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(2 * widths[-1], classes)

    def forward(self, pictures_N3HW: Tensor) -> Tensor:
        x = pictures_N3HW
        for layer in self.layers:
            x = functional.silu(layer(x))
        scores: Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the classifier, and print its ceiling and the table of prompts."""
    parser = argparse.ArgumentParser(prog="gamecraft bench prompts", description=__doc__.splitlines()[0])
    parser.add_argument("world")
    parser.add_argument("--data", nargs="+", required=True, help="outputs with acted events to train the classifier on")
    parser.add_argument("--held-out", nargs="+", required=True, help="other takes: the classifier's limit, and starts")
    parser.add_argument("--steps", type=int, default=1200, help="training steps of the classifier")
    parser.add_argument("--starts", type=int, default=24, help="start pictures")
    parser.add_argument("--out", type=Path, default=Path("prompts-bench"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    loaded = load_world(find_world(options.world))
    train, test = (read_frames(loaded, outputs) for outputs in (options.data, options.held_out))
    names = [NONE, *sorted(set(train.labels) - {NONE})]
    classifier = fit(train, names, options.steps, loaded.codec)
    print(describe())
    limit = accuracy(classifier, test, names)
    print(
        "\nclassifier on held-out takes of the engine\n" + "\n".join(f"| {name} | {share} |" for name, share in limit.items())
    )
    firsts = [i for i, label in enumerate(test.labels) if label == NONE][:: max(1, test.labels.count(NONE) // options.starts)]
    table, rows = play(loaded, classifier, names, test.frames[firsts[: options.starts]])
    print(f"\nworld, prompt after {_BEFORE} frames: seen within {_WITHIN} more, any other event seen instead")
    print("\n".join(f"| {name} | {row['seen']} | {row['other']} |" for name, row in table.items()))
    cv2.imwrite(str(options.out / "prompts.png"), np.concatenate(rows)[..., ::-1])
    (options.out / "prompts.json").write_text(json.dumps({"classifier": limit, "world": table}, indent=1))


def read_frames(loaded: LoadedWorld, outputs: Sequence[str], every: int = 2) -> LabelledFrames:
    """Return every few frames of the takes, with the event that they show."""
    captions = CaptionMix(dropout=0.0, with_standard=False)
    data = replace(play_data(loaded, _FRAMES), captions=captions, join_clips=True)
    windows = Windows(outputs, data)
    frames, labels = [], []
    for number, window in enumerate(windows.windows):
        sample, event_s = windows[0, number], _first_event_s(window, captions)
        latest_s = window.start_s + window.slack_s
        for frame in range(0, _FRAMES, every):
            text = next(text for first, text in reversed(sample["spans"]) if first <= frame)
            if not text and latest_s + frame / data.fps > event_s:
                continue  # what happened can still be seen
            frames.append(sample["video"][:, frame])
            labels.append(plain_prompt(text) or NONE)
    return LabelledFrames(torch.stack(frames), labels)


def _first_event_s(window: Window, captions: CaptionMix) -> float:
    """Return when something first happens in the clips of a window, from the first clip on; infinity where nothing does."""
    start_s = 0.0
    for clip in window.clips:
        if text_of_clip(clip, captions):
            return start_s
        start_s += clip.seconds
    return float("inf")


def fit(data: LabelledFrames, names: Sequence[str], steps: int, codec: Codec) -> Classifier:
    """Train a classifier; classes are drawn equally often."""
    torch.manual_seed(0)
    classifier = Classifier(len(names))
    optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    by_class: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(data.labels):
        by_class[label].append(i)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        classes = rng.integers(len(names), size=32)
        chosen = [by_class[names[c]][rng.integers(len(by_class[names[c]]))] for c in classes]
        pictures = to_signed(data.frames[chosen])
        kind = rng.integers(3)
        if kind == 1:
            with torch.no_grad():
                pictures = codec.decode(codec.encode(pictures[:, :, None]))[:, :, 0]
        elif kind == 2:
            small = functional.interpolate(pictures, scale_factor=float(rng.uniform(0.45, 0.9)), mode="area")
            pictures = functional.interpolate(small, size=pictures.shape[-2:], mode="bicubic", align_corners=False)
        pictures = pictures * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.06, 0.06))
        loss = functional.cross_entropy(classifier(pictures), torch.from_numpy(classes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


@torch.no_grad()
def name_frames(classifier: Classifier, frames_N3HW: Tensor, names: Sequence[str]) -> list[str]:
    """Return the event of each frame, signed pictures."""
    return [names[i] for part in frames_N3HW.split(64) for i in classifier(part).argmax(1).tolist()]


def accuracy(classifier: Classifier, data: LabelledFrames, names: Sequence[str]) -> dict[str, str]:
    """Return the share of frames of each class that are named rightly."""
    made = name_frames(classifier, to_signed(data.frames), names)
    hits: dict[str, list[bool]] = defaultdict(list)
    for true, named in zip(data.labels, made, strict=True):
        hits[true].append(true == named)
    return {name: str(proportion(hits[name])) for name in names if hits[name]}


@torch.no_grad()
def play(
    loaded: LoadedWorld, classifier: Classifier, names: Sequence[str], starts: Tensor
) -> tuple[dict[str, dict[str, str]], list[np.ndarray]]:
    """Return, for no prompt and each prompt, how often the event is seen and another one is, and a strip of frames of each.

    An event is seen where two frames in a row have it.
    """
    file = loaded.file
    first = to_signed(starts)
    intrinsics = torch.tensor([file.intrinsics]).expand(len(first), -1)
    block = file.causal.block * file.frames_per_latent
    before, within = (-(-frames // block) * block for frames in (_BEFORE, _WITHIN))  # whole blocks
    frames = before + within
    states = [ControlState(frozenset({"RIGHT"} if i % 9 < 3 else set())) for i in range(frames)]
    pose = torch.from_numpy(integrate(states, file.control)).float()[None].expand(len(first), -1, -1, -1)
    table: dict[str, dict[str, str]] = {}
    rows = []
    for prompt in names:
        stream = Rollout(loaded.world, loaded.codec, file.causal, StreamStart(first, intrinsics, _text(loaded, "", len(first))))
        video = [stream.first_frame, stream.extend(pose[:, 1 : 1 + before])]
        if prompt != NONE:
            stream.set_text(_text(loaded, prompt, len(first)))
        whole = torch.cat([*video, stream.extend(pose[:, 1 + before :])], 2)
        after = whole[:, :, 1 + before :]
        events = [name_frames(classifier, one.transpose(0, 1), names) for one in after]
        seen = [_has(each, prompt) for each in events]
        others = [any(_has(each, other) for other in names if other not in (prompt, NONE)) for each in events]
        table[prompt] = {"seen": str(proportion(seen)) if prompt != NONE else "", "other": str(proportion(others))}
        rows.append(strip(whole[0], (0, before, before + 2, before + 4, before + 7, frames)))
    return table, rows


def _has(events: Sequence[str], name: str) -> bool:
    """Return whether two frames in a row show an event."""
    return any(a == b == name for a, b in itertools.pairwise(events))


def _text(loaded: LoadedWorld, prompt: str, count: int) -> Tensor:
    text: Any = loaded.encode_text([prompt] * count)
    return torch.as_tensor(text)


if __name__ == "__main__":
    main()
