"""What test_parallel.py starts in each rank: train the tiny world of a seed, sharded, and tell what came of it."""

import json
import sys
from dataclasses import replace

import torch
from tiny_world import DATA, Words, codec, experts  # beside this program
from torch.distributed.device_mesh import init_device_mesh

from model.experts import NoiseSpec
from model.parallel import fsdp, ranks
from model.training.settings import Phase, TrainSettings
from model.training.trainer import Trainer
from model.world import World

HOW = TrainSettings(curriculum=(Phase(5, 6),), rate=1e-3, warm_up=1, log_every=1, watch_every=0, workers=0)


def world(count, dtype=torch.float32):
    mesh = init_device_mesh("cpu", (count,))
    return World(*(fsdp.shard(expert, mesh, dtype) for expert in experts()), NoiseSpec())


def main(out, folder, steps, what):
    rank, count, _ = ranks.start()
    if what == "disagree":
        ranks.agree("the expert of a step", f"expert of rank {rank}")
    dtype = torch.bfloat16 if what == "bfloat16" else torch.float32
    trainer = Trainer(world(count, dtype), codec(), Words(), [out], DATA, replace(HOW, batch=2 // count), folder, rank, count)
    notes = trainer.run(int(steps))
    state = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in trainer.world.named_parameters()}
    if rank == 0:
        torch.save({n: p.detach() for n, p in state.items()}, f"{folder}-weights.pt")
        sys.stdout.write(json.dumps([[note["expert"], note["loss"], note["gradient"]] for note in notes]) + "\n")
    ranks.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
