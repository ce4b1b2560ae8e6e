"""What test_parallel.py starts in each rank: train the tiny world of a seed, sharded, and tell what came of it."""

import json
import sys
from dataclasses import replace

import torch
from tiny_world import DATA, Words, codec, experts  # beside this program

from model.backbone import load_weights
from model.noise import NoiseSpec
from model.parallel import dist
from model.parallel.layout import Layout, seated
from model.training.settings import Phase, TrainSettings
from model.training.trainer import Trainer
from model.world import ControlledExpert, World

HOW = TrainSettings(curriculum=(Phase(5, 6),), rate=1e-3, warm_up=1, log_every=1, watch_every=0, workers=0)


LAYOUTS = {"context": Layout(context=2, recompute=True)}


def world(seat, what):
    dtype = torch.bfloat16 if what == "bfloat16" else torch.float32
    return World(*(seat.put(expert, dtype) for expert in experts()), NoiseSpec())


def loaded(folder, seat):
    """A sharded expert that was built without memory, out of a folder; its whole weights."""
    base = load_weights.blank(load_weights.read_config(folder))
    made = seat.put(ControlledExpert(base), torch.float32)
    load_weights.load_sharded(made, base, folder)
    assert not any(p.is_meta for p in made.parameters())
    return base


def whole(module):
    found = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in module.named_parameters()}
    return {name: tensor.detach() for name, tensor in found.items()}


def main(out, folder, steps, what):
    rank, _, device = dist.start()
    seat = seated(LAYOUTS.get(what, Layout()), device)
    if what == "load":
        state = whole(loaded(out, seat))
        if rank == 0:
            torch.save(state, f"{folder}-weights.pt")
            sys.stdout.write("null\n")
        dist.stop()
        return
    if what == "disagree":
        dist.agree("the expert of a step", f"expert of rank {rank}")
    how = replace(HOW, batch=2 // seat.of)
    trainer = Trainer(world(seat, what), codec(), Words(), [out], DATA, how, folder, seat.number, seat.of)
    notes = trainer.run(int(steps))
    state = whole(trainer.world)
    if rank == 0:
        torch.save(state, f"{folder}-weights.pt")
        sys.stdout.write(json.dumps([[note["expert"], note["loss"], note["gradient"]] for note in notes]) + "\n")
    dist.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
