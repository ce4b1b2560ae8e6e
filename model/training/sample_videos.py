"""Sample videos during training: the world generates a few fixed windows, and control accuracy is measured on them.

The loss does not show whether a world follows its controls or ignores them; this does.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.backbone.vae import to_signed, to_uint8
from model.causal.rollout import Rollout, StreamStart
from model.causal.spec import CausalSpec
from model.data.loader import DataSettings, TrainingSample, Windows, collate, read_sample
from model.data.windows import Window
from model.evaluation import control_accuracy
from model.sampling import sample, sampler_sigmas
from model.training import flow_matching
from model.training.parts import ModelParts
from model.training.settings import TrainSettings


def generate(
    parts: ModelParts,
    outputs: Sequence[str],
    data: DataSettings,
    settings: TrainSettings,
    causal: CausalSpec | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Return the share of videos that followed their control, by direction (those that occur), and the videos.

    data: from `evaluation_data`. causal: how a causal world generates, block by block; None: a bidirectional one. The videos
    are uint8 [B, 3, F, H, W]. Every rank generates the same videos, since sharded weights must be gathered equally often on all
    ranks.
    """
    batch = collate(fixed_samples(Windows(outputs, data), settings.sample_clips))
    if causal is None:
        encoders = parts.codec, parts.text_encoder, parts.device, parts.vlm_encoder
        conditioning = flow_matching.encode_batch(batch, *encoders).conditioning
        generator = torch.Generator().manual_seed(settings.seed)
        sigmas = sampler_sigmas(parts.world.noise, settings.sample_steps)
        videos = to_uint8(parts.codec.decode(sample(parts.world, conditioning, sigmas, generator)))
    else:
        videos = to_uint8(roll_out(parts, causal, batch, settings.seed))
    hits: dict[str, list[bool]] = defaultdict(list)
    for video, pose in zip(videos, batch["pose"], strict=True):
        direction = control_accuracy.camera_motion(pose.numpy()).direction
        if direction:
            motion = control_accuracy.video_motion(video.permute(1, 2, 3, 0).cpu().numpy())
            hits[direction].append(control_accuracy.follows(direction, motion))
    return {direction: float(np.mean(results)) for direction, results in sorted(hits.items())}, videos


def roll_out(parts: ModelParts, spec: CausalSpec, batch: dict[str, Any], seed: int) -> Tensor:
    """Return the video [B, 3, F, H, W] in [-1, 1] that a causal world makes of a batch's first frames, cameras and texts.

    F is as many whole blocks as the batch has frames for. A sample without a camera is generated with one at rest.
    """
    device = parts.device
    pictures = to_signed(batch["video"][:, :, 0].to(device))
    intrinsics = flow_matching.valid_intrinsics(batch, (pictures.shape[-2], pictures.shape[-1]), device)[:, 0]
    vlm_context = flow_matching.encode_instructions(batch, parts.vlm_encoder, device)
    start = StreamStart(pictures, intrinsics, parts.text_encoder(batch["text"]), vlm_context)
    rollout = Rollout(parts.world, parts.codec, spec, start, seed)
    return torch.cat([rollout.first_frame, rollout.extend(batch["pose"].to(device)[:, 1:])], 2)


def evaluation_data(data: DataSettings, frames: int, outputs: Sequence[str] = ()) -> DataSettings:
    """Return data settings for evaluation: every sample has its camera and is neither mirrored, reversed nor read as latents.

    outputs: where given, samples are read from these instead of the sources of `data`.
    """
    plain = replace(data, frames=frames, camera_dropout=0.0, mirror_share=0.0, reverse_share=0.0, latents="")
    return replace(plain, sources=()) if outputs else plain


def read_window(window: Window, data: DataSettings) -> TrainingSample:
    """Read the sample of a window, without a replacement where that fails."""
    return TrainingSample(**read_sample(window, data, epoch=0), source="", replaced=[])  # type: ignore[typeddict-item]


def fixed_samples(windows: Windows, count: int) -> list[TrainingSample]:
    """Return the same samples every time, spread over all windows. One that cannot be read is replaced, as in training."""
    numbers = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)
    return [windows[0, int(number)] for number in numbers]
