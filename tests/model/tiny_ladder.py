"""The demo's ladder at the smallest size, and the parts of a step of self-forcing without a trainer."""

from dataclasses import replace

import torch

from model.backbone.dit import Expert
from model.backbone.frame_codec import FrameCodec
from model.backbone.text import WordTextEncoder
from model.causal.spec import CausalSpec
from model.config import BackboneConfig
from model.control.encoder import CameraEncoder
from model.noise import NoiseSpec, seeded_generator
from model.training.parts import ModelParts
from model.training.self_forcing import Draws
from model.training.settings import TrainPhase
from model.warp import condition_channels
from model.world import ControlledExpert, World

CHANNELS = 4
PLAIN = CausalSpec(block=2, window=4, steps=(1.0, 0.95, 0.6), fps=10.0)
WARPED = CausalSpec(block=1, window=3, steps=(1.0, 0.5), pose_origin="block", warp=True, memory="keyframes", fps=10.0)


def tiny(recipe):
    """A recipe of the demo's ladder at the smallest size."""
    channels = 8
    backbone = replace(
        recipe.model.backbone,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        ffn_dim=48,
        in_channels=channels + 2 * (8 + channels),
        out_channels=channels,
    )
    objective = recipe.objective
    if objective.kind != "self_forcing":
        objective = replace(objective, latents=5, own_history_share=0.7 if objective.own_history_share else 0.0)
    causal, window = recipe.causal, 4
    if recipe.name == "demo-teacher":
        causal = replace(causal, block=window, window=window)
    return replace(
        recipe,
        model=replace(recipe.model, backbone=backbone, control_width=16),
        codec=replace(recipe.codec, channels=channels, width=4, steps=3, pictures=60, batch=2),
        data=replace(recipe.data, fps=10.0, size=(32, 32)),
        train=replace(
            recipe.train,
            curriculum=(TrainPhase(9, 4),),
            batch=2,
            precision="float32",
            log_every=1,
            sample_every=2,
            sample_clips=2,
        ),
        objective=objective,
        causal=causal,
        distillation=replace(recipe.distillation, window=window, measure_every=2),
    )


def world(spec, two=True, seed=3):
    """A world with random weights, for `codec()`."""
    torch.manual_seed(seed)
    condition = condition_channels(spec.warp_sources, CHANNELS) if spec.warp else 4 + CHANNELS
    config = BackboneConfig(2, 18, 2, 48, CHANNELS + condition, CHANNELS, text_dim=12, freq_dim=16, patch_size=(1, 1, 1))
    experts = [
        ControlledExpert(Expert(config), CameraEncoder(config.width, 8, 1, frames_per_latent=1), spec.warp_sources)
        for _ in range(1 + two)
    ]
    with torch.no_grad():
        for expert in experts:
            for weight in expert.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
            if expert.remainder is not None:
                expert.remainder.fill_(0.3)
    return World(experts[0], experts[-1], NoiseSpec(boundary=0.9 if two else 0.0))


def codec():
    torch.manual_seed(5)
    return FrameCodec(CHANNELS, 4, 8).eval().requires_grad_(False)


def parts(spec, two=True, window=4):
    """Student, teacher and critic with different weights."""
    teacher_causal = replace(spec, block=window, window=window, memory="none") if spec.warp else None
    teacher = world(spec, two, 7).requires_grad_(False)
    student, critic = world(spec, two, 3), world(spec, two, 11)
    return ModelParts(student, codec(), WordTextEncoder(12), None, "tiny", teacher, critic, teacher_causal)


def batch(size=2, frames=11, texts=None):
    """Videos of noise whose cameras walk and turn."""
    random = seeded_generator(1, "batch")
    step = torch.eye(4)
    step[0, 0] = step[2, 2] = torch.cos(torch.tensor(0.05))
    step[0, 2], step[2, 0], step[2, 3] = torch.sin(torch.tensor(0.05)), -torch.sin(torch.tensor(0.05)), 0.1
    poses = [torch.eye(4)]
    for _ in range(frames - 1):
        poses.append(poses[-1] @ step)
    spans = texts or [[(0, "")]] * size
    return {
        "video": torch.randint(0, 256, (size, 3, frames, 16, 24), generator=random, dtype=torch.uint8),
        "pose": torch.stack(poses).expand(size, -1, -1, -1),
        "origin": torch.eye(4).expand(size, 4, 4),
        "intrinsics": torch.tensor([20.0, 20.0, 12.0, 8.0]).expand(size, frames, 4),
        "camera_known": torch.ones(size, dtype=torch.bool),
        "spans": spans,
        "text": [each[0][1] for each in spans],
        "source": [""] * size,
        "replaced": [],
    }


def draws(window, exit_step=1, exit_expert="high", student=True, forced=False):
    return Draws(student, window, forced, exit_step, exit_expert, "high", "high")


def generators(count, key=""):
    return [seeded_generator(0, "sample", key, number) for number in range(count)]
