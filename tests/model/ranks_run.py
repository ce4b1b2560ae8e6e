"""What test_parallel.py starts in each rank: train the tiny world of a seed, sharded, and tell what came of it."""

import json
import sys
from dataclasses import replace

import torch
from tiny_world import DATA, Words, codec, experts  # beside this program

from model.backbone import checkpoint
from model.experts import NoiseSpec
from model.parallel import ranks
from model.parallel.layout import Layout, lay
from model.training.settings import Phase, TrainSettings
from model.training.trainer import Trainer
from model.world import ControlledExpert, World

HOW = TrainSettings(curriculum=(Phase(5, 6),), rate=1e-3, warm_up=1, log_every=1, watch_every=0, workers=0)
LAYOUTS = {
    "train": Layout(bfloat16=False),
    "bfloat16": Layout(),
    "context-recompute": Layout(context=2, recompute=True, bfloat16=False),
}


def loaded(folder):
    """An expert that was built without memory and laid on the ranks, then read from a folder."""
    made = ControlledExpert(checkpoint.blank(checkpoint.read_config(folder)))
    lay(World(made, made, NoiseSpec()), Layout(bfloat16=False))
    checkpoint.load_sharded(made, made.expert, folder)
    assert not any(p.is_meta for p in made.parameters())
    return made.expert


def tell(folder, module, words):
    """The first rank writes the whole weights and says something."""
    found = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in module.named_parameters()}
    if ranks.first():
        torch.save({name: tensor.detach() for name, tensor in found.items()}, f"{folder}-weights.pt")
        sys.stdout.write(json.dumps(words) + "\n")


def main(out, folder, steps, what):
    rank, _, _ = ranks.start()
    if what == "disagree":
        ranks.agree("the expert of a step", f"expert of rank {rank}")
    if what == "load":
        tell(folder, loaded(out), None)
    else:
        world = World(*experts(), NoiseSpec())
        seat = lay(world, LAYOUTS[what])
        trainer = Trainer(world, codec(), Words(), [out], DATA, replace(HOW, batch=2 // seat.of), folder, *seat)
        notes = trainer.run(int(steps))
        tell(folder, world, [[note["expert"], note["loss"], note["gradient"]] for note in notes])
    ranks.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
