"""A look at a world in training: videos of a few fixed windows, and how many of them obey their cameras.

Loss does not tell a world that obeys from one that ignores its controls; this does.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from model.backbone.vae import Codec
from model.data.loader import DataSettings, Sample, Windows, collate, read
from model.data.windows import Window
from model.evaluation import control_accuracy
from model.sampling import levels, sample
from model.training import flow_matching
from model.training.metrics import pictures
from model.training.settings import TrainSettings
from model.world import World


def watch(
    world: World,
    codec: Codec,
    words: flow_matching.Words,
    outputs: Sequence[str],
    data: DataSettings,
    how: TrainSettings,
    thoughts: flow_matching.Thoughts | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Shares that obeyed by what was asked (those kinds that occur), and the videos uint8 [B, 3, F, H, W].

    data: as `as_played` gives it. Every rank makes the same videos: a model's shards must be gathered as often everywhere.
    """
    batch = collate(chosen(Windows(outputs, data), how.watch_clips))
    device = next(world.parameters()).device
    given = flow_matching.encoded(batch, codec, words, device, thoughts).given
    generator = torch.Generator().manual_seed(how.seed)
    videos = pictures(codec.decode(sample(world, given, levels(world.noise, how.watch_steps), generator)))
    hits: dict[str, list[bool]] = defaultdict(list)
    for video, pose in zip(videos, batch["pose"], strict=True):
        kind = control_accuracy.told(pose.numpy()).kind
        if kind:
            hits[kind].append(control_accuracy.obeys(kind, control_accuracy.shown(video.permute(1, 2, 3, 0).cpu().numpy())))
    return {kind: float(np.mean(found)) for kind, found in sorted(hits.items())}, videos


def as_played(data: DataSettings, frames: int, outputs: Sequence[str] = ()) -> DataSettings:
    """Every sample with its camera, neither mirrored nor backwards nor encoded before; of these outputs where there are any."""
    plain = replace(data, frames=frames, camera_none_share=0.0, mirror_share=0.0, reverse_share=0.0, latents="")
    return replace(plain, sources=()) if outputs else plain


def plainly(window: Window, data: DataSettings) -> Sample:
    """The sample of a window, which must be there."""
    return Sample(**read(window, data, epoch=0), source="", replaced=[])  # type: ignore[typeddict-item]


def chosen(windows: Windows, count: int) -> list[Sample]:
    """The same windows every time, spread over all there are; one that cannot be read is replaced, as in training."""
    numbers = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)
    return [windows[0, int(number)] for number in numbers]
