"""A tiny world that is played block by block, for the tests of switches, in this process and in ranks."""

import numpy as np
import tiny_ladder  # next to this file
import torch

from model.backbone.dit import Expert
from model.causal.cache import RingCache, TokenGrid
from model.causal.rollout import EAGER, Rollout, StreamStart
from model.causal.spec import CausalSpec
from model.config import BackboneConfig
from model.control.encoder import CameraEncoder
from model.control.spec import ControlSpec
from model.control.trajectory import PlayerState
from model.noise import NoiseSpec
from model.world import ControlledExpert, World
from model.world_files import WorldFile, save_world

SPEC = CausalSpec(block=3, window=6, steps=(1.0, 0.95, 0.5))
WARPED = tiny_ladder.WARPED
# Sides that divide by 16, as fp8 needs.
CONFIG = BackboneConfig(2, 32, 2, 96, 4 + 4 + 4, 4, text_dim=16, freq_dim=16, patch_size=(1, 1, 1))


def world(two=True, seed=3):
    """Two experts of random weights, in which every part says something."""
    torch.manual_seed(seed)
    experts = [ControlledExpert(Expert(CONFIG), CameraEncoder(CONFIG.width, 8, 1, 1)) for _ in range(1 + two)]
    with torch.no_grad():
        for expert in experts:
            for weight in expert.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    made = World(experts[0], experts[-1], NoiseSpec(boundary=0.9 if two else 0.0))
    return made.eval().requires_grad_(False)


def play(model, cache, blocks=9, spec=SPEC, passes=EAGER, keeps_text=False, texts=(), thread=None, seed=0):
    """Latents and frames of some blocks; texts: (block, value) to set before a block."""
    width = model.high.expert.config.text_dim
    torch.manual_seed(9)
    pictures = torch.rand(1, 3, 16, 24) * 2 - 1
    start = StreamStart(pictures, torch.tensor([[20.0, 20.0, 12.0, 8.0]]), torch.full((1, 3, width), 0.5))
    stream = Rollout(model, tiny_ladder.codec(), spec, start, seed, cache, passes, keeps_text)
    latents, frames = [], []
    for block in range(blocks):
        for at, value in texts:
            if at == block:
                stream.set_text(torch.full((1, 3, width), value))
        count = stream.block_frames
        poses = [PlayerState(z=0.03 * i, yaw_deg=3.0 * i).pose for i in range(block * count, (block + 1) * count)]
        latents.append(stream.generate(torch.from_numpy(np.stack(poses)).float()[None]))
        frames.append(stream.decode() if thread is None else stream.decode_in(thread.submit))
        stream.commit()
    frames = [each if isinstance(each, torch.Tensor) else each.result() for each in frames]
    return torch.cat(latents, 2), torch.cat(frames, 2)


def grid(model):
    return TokenGrid.of(model.high.expert, 2, 3)


def ring(model, spec=SPEC):
    return RingCache(spec, grid(model), model)


TEXTS = ((4, 1.0), (7, -1.0))


def save_world_file(folder):
    """Write the tiny world as a playable one."""
    file = WorldFile(
        name="tiny",
        size=(24, 16),
        intrinsics=(20.0, 20.0, 12.0, 8.0),
        backbone=CONFIG,
        noise=NoiseSpec(boundary=0.9),
        causal=SPEC,
        control=ControlSpec(fps=SPEC.fps),
        two_experts=True,
        control_width=8,
        frames_per_latent=1,
        codec={"channels": 4, "width": 4, "cell_px": 8},
        reads_text=True,
    )
    save_world(folder, file, world(), tiny_ladder.codec(), [("grey", np.full((16, 24, 3), 120, np.uint8))])
