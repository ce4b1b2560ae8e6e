"""How a model lies on many devices: one place that puts everything around an expert, in the one order that works."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from model.parallel import context_parallel, fsdp
from model.parallel import recompute as blocks
from model.world import ControlledExpert


@dataclass(frozen=True)
class Layout:
    """context: ranks that share one sample's tokens (Ulysses); the other ranks take samples of their own. recompute:
    activations are computed again in the backward pass. compile: each block. Weights are sharded over all ranks (FSDP2).
    """

    context: int = 1
    recompute: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"context must be at least 1 rank, not {self.context}")


@dataclass(frozen=True)
class Seat:
    """A rank's place: it reads samples as reader `number` `of` so many; ranks that share a sample are one reader."""

    layout: Layout
    everyone: DeviceMesh
    sharers: DeviceMesh
    number: int
    of: int

    def put(self, controlled: ControlledExpert, dtype: torch.dtype) -> ControlledExpert:
        """Put an expert on all ranks, in place; dtype: what its blocks compute in. ValueError where it cannot be divided."""
        if self.layout.context > 1:
            context_parallel.share(controlled.expert, self.sharers)
        if self.layout.recompute:
            blocks.recompute(controlled.expert)
        if self.layout.compile:
            blocks.compiled(controlled.expert)
        return fsdp.shard(controlled, self.everyone, dtype)


def seated(layout: Layout, device: torch.device) -> Seat:
    """A rank's own place among those that `ranks.start` joined. ValueError where they do not divide by `context`."""
    rank, count, sharers = dist.get_rank(), dist.get_world_size(), layout.context
    if count % sharers:
        raise ValueError(f"{count} ranks do not divide into groups of {sharers}: start more, or set layout.context to fewer")
    mesh = init_device_mesh(device.type, (count // sharers, sharers), mesh_dim_names=("data", "context"))
    return Seat(layout, init_device_mesh(device.type, (count,)), mesh["context"], rank // sharers, count // sharers)
