"""Program that test_parallel.py starts in each rank: do tasks from stdin, such as to train the tiny world, sharded.

A task is a line of JSON: data, folder, steps, what. Rank 0 answers each with a line: the metrics, or {"error": words}.
"""

import json
import sys
from dataclasses import replace

import tiny_ladder  # next to this program
import torch
from tiny_world import experts, parts, recipe  # next to this program

from model.backbone import load_weights
from model.distiller import Distiller
from model.noise import NoiseSpec
from model.parallel import dist
from model.parallel.layout import ParallelLayout, place_rank
from model.recipes import demo_distil
from model.trainer import Trainer
from model.training.settings import TrainPhase, TrainSettings
from model.world import ControlledExpert, World

SETTINGS = TrainSettings(curriculum=(TrainPhase(5, 6),), lr=1e-3, warmup_steps=1, log_every=1, sample_every=0, workers=0)


LAYOUTS = {"context": ParallelLayout(context=2, recompute=True)}
LAYOUTS |= {"distil in context": LAYOUTS["context"], "forced in context": LAYOUTS["context"]}


def world(placement, what):
    dtype = torch.bfloat16 if what == "bfloat16" else torch.float32
    return World(*(placement.parallelize(expert, dtype) for expert in experts()), NoiseSpec())


def loaded(folder, placement):
    """Build an expert on the meta device, shard it and load it from a folder; return the unsharded expert inside."""
    base = load_weights.meta_expert(load_weights.read_config(folder))
    made = placement.parallelize(ControlledExpert(base), torch.float32)
    load_weights.load_sharded(made, base, folder)
    assert not any(p.is_meta for p in made.parameters())
    return base


def whole(module):
    found = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in module.named_parameters()}
    return {name: tensor.detach() for name, tensor in found.items()}


def distil(placement, folder, out, steps, what):
    """Train a tiny student of two experts on its rollouts for some steps. Return metrics and the trainer."""
    spec = replace(tiny_ladder.PLAIN, sharing="low_noise" if what.startswith("forced") else "per_expert")
    parts = tiny_ladder.parts(spec)
    worlds = {}
    for name in ("world", "teacher", "critic"):
        world = getattr(parts, name)
        experts = [placement.parallelize(expert, torch.float32) for expert in (world.high, world.low)]
        worlds[name] = World(*experts, world.noise)
    parts = replace(parts, **worlds)
    made = tiny_ladder.tiny(demo_distil())
    settings = replace(made.distillation, update_ratio=1, lr_high=1e-3, lr_low=1e-3, critic_lr_high=1e-3, critic_lr_low=1e-3)
    if what.startswith("forced"):
        settings = replace(settings, window_at="uniform", teacher_forcing_share=0.5)
    made = replace(made, distillation=settings)
    object.__setattr__(made, "causal", spec)
    trainer = Distiller(parts, placement, made, folder, [out])
    metrics = []
    for step in range(steps):
        batch = tiny_ladder.batch(2, 9)
        own = slice(placement.data_rank, None, placement.data_ranks)
        names = ("video", "pose", "origin", "intrinsics", "camera_known", "spans", "text", "source")
        batch = batch | {name: batch[name][own] for name in names}
        step_metrics = trainer._step([(batch, 2 * step)])
        trainer.step += 1
        values = step_metrics["values"]
        metrics.append([step_metrics["expert"], step_metrics["loss"], step_metrics["gradient"], values["student gradient"]])
    return metrics, trainer


def work(rank, device, out, folder, steps, what):
    placement = place_rank(LAYOUTS.get(what, ParallelLayout()), device)
    if what == "load":
        state, metrics = whole(loaded(out, placement)), None
    elif what.startswith(("distil", "forced")):
        metrics, trainer = distil(placement, folder, out, steps, what)
        state = whole(trainer.world)
    else:
        if what == "disagree":
            dist.check_agreement("the expert of a step", f"expert of rank {rank}")
        settings = replace(SETTINGS, batch=2 // placement.data_ranks)
        trainer = Trainer(parts(world(placement, what)), placement, recipe(settings), folder, [out])
        metrics = [[step["expert"], step["loss"], step["gradient"]] for step in trainer.run(steps)]
        state = whole(trainer.world)
    if rank == 0:
        torch.save(state, f"{folder}-weights.pt")
    return metrics


def main():
    rank, _, device = dist.start()
    for line in sys.stdin:
        try:
            answer = work(rank, device, *json.loads(line))
        except Exception as error:
            answer = {"error": str(error)}
        if rank == 0:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    dist.stop()


if __name__ == "__main__":
    main()
