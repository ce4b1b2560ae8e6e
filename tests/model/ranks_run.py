"""What test_parallel.py starts in each rank: train the tiny world of a seed, sharded, and tell what came of it."""

import json
import sys
from dataclasses import replace

import diffusers
import torch
from torch.distributed.device_mesh import init_device_mesh

from model.backbone.dit import Expert
from model.backbone.vae import VideoCodec
from model.config import tiny
from model.data.captions import CaptionMix
from model.data.loader import DataSettings
from model.experts import NoiseSpec
from model.parallel import fsdp, ranks
from model.training.settings import Phase, TrainSettings
from model.training.trainer import Trainer
from model.world import ControlledExpert, World

DATA = DataSettings(frames=5, fps=10.0, size=(32, 32), captions=CaptionMix(none_share=0.0))
HOW = TrainSettings(curriculum=(Phase(5, 6),), rate=1e-3, warm_up=1, log_every=1, workers=0)


class Words(torch.nn.Module):
    def forward(self, texts):
        waves = 1 + torch.arange(3.0 * tiny().text_dim).view(3, -1)
        return torch.stack([torch.sin(waves * (1 + sum(map(ord, text)) % 97)) for text in texts])


def world(count, dtype=torch.float32):
    torch.manual_seed(1)
    experts = [ControlledExpert(Expert(tiny())) for _ in range(2)]
    mesh = init_device_mesh("cpu", (count,))
    return World(*(fsdp.shard(expert, mesh, dtype) for expert in experts), NoiseSpec())


def main(out, folder, steps, what):
    rank, count, _ = ranks.start()
    if what == "disagree":
        ranks.agree("the expert of a step", f"expert of rank {rank}")
    torch.manual_seed(0)
    codec = VideoCodec(diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1))
    dtype = torch.bfloat16 if what == "bfloat16" else torch.float32
    trainer = Trainer(world(count, dtype), codec, Words(), [out], DATA, replace(HOW, batch=2 // count), folder, rank, count)
    notes = trainer.run(int(steps))
    state = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in trainer.world.named_parameters()}
    if rank == 0:
        torch.save({n: p.detach() for n, p in state.items()}, f"{folder}-weights.pt")
        sys.stdout.write(json.dumps([[note["expert"], note["loss"], note["gradient"]] for note in notes]) + "\n")
    ranks.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
