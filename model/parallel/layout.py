"""How a world lies on many devices: one place that puts everything around it, in the one order that works."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from model.parallel import blocks, context, fsdp
from model.world import World


@dataclass(frozen=True)
class Layout:
    """context: ranks that share one sample's tokens (Ulysses); the rest of the ranks take samples of their own. recompute:
    activations again in the backward pass. compile: each block. bfloat16: what blocks compute in (weights stay float32).
    """

    context: int = 1
    recompute: bool = False
    compile: bool = False
    bfloat16: bool = True

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"context must be at least 1 rank, not {self.context}")


class Seat(NamedTuple):
    """Whose samples a rank takes: reader `number` `of` so many. Ranks of one context group are one reader."""

    number: int
    of: int


def lay(world: World, how: Layout) -> Seat:
    """Put a world on all ranks of the group that `ranks.start` joined, in place.

    ValueError where the ranks, or an expert's heads, do not divide by `context`.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    if count % how.context:
        raise ValueError(f"{count} ranks do not divide into groups of {how.context} for context parallel")
    kind = next(p for p in world.parameters() if not p.is_meta).device.type  # weights that are read later lie nowhere yet
    mesh = init_device_mesh(kind, (count // how.context, how.context), mesh_dim_names=("data", "context"))
    everyone = init_device_mesh(kind, (count,))
    for controlled in {id(e): e for e in (world.high, world.low)}.values():
        if how.context > 1:
            context.share(controlled.expert, mesh["context"])
        if how.recompute:
            blocks.recompute(controlled.expert)
        if how.compile:
            blocks.compiled(controlled.expert)
        fsdp.shard(controlled, everyone, torch.bfloat16 if how.bfloat16 else torch.float32)
    return Seat(rank // how.context, count // how.context)
